"""Tests of the kernels, ours and cuDNN's, on the device at hand: what is wrong need not be timed."""

import importlib.util
import re

from stmoe.bench.device import pending

WORTH = 1
FILES = 'tests/pallas_kernels/test_device.py', 'tests/parts/test_attend_fused.py'
PROCESSES = 8                            # that compile at the same time, where pytest-xdist is installed
MEMORY = 0.08                            # of the GPU, that each takes


def jobs(dry):
  """Returns the only Command; a dry run asks pytest for its version."""
  several = ['-n', str(PROCESSES)] if importlib.util.find_spec('xdist') else []
  words = ['--version'] if dry else ['-q', '-rf', '--tb=line', *several, *FILES]
  return [pending.Command('tests kernels', 100, ('-m', 'pytest', *words), _quick if dry else read,
                          dict(XLA_PYTHON_CLIENT_MEM_FRACTION=str(MEMORY), JAX_PLATFORMS='cuda'))]


def _quick(code, text):
  return [dict(passed=0, failed=0)]


def read(code, text):
  """Returns the row dict(passed, failed, names of those); raises Failed, with it, unless all passed."""
  count = lambda word: sum(map(int, re.findall(rf'(\d+) {word}\b', text.rpartition('\n=')[2] or text)))
  passed, failed = count('passed'), count('failed') + count('errors?')
  if not passed and not failed:
    last = [line for line in text.splitlines() if line.strip()][-1:]
    raise pending.Failed(f'pytest ended with {code} and ran nothing: {"".join(last)}')
  names = re.findall(r'^(?:FAILED|ERROR) (\S+)', text, re.M)
  rows = [dict(passed=passed, failed=failed, names=names)]
  if code:
    raise pending.Failed(f'pytest ended with {code}, {failed} failed: {", ".join(names)}', rows)
  return rows


def table(records):
  """Returns a line."""
  rows = [row for record in records.values() for row in record['rows']]
  if not rows:
    return 'Not run.'
  return '\n\n'.join(f'{row["passed"]} passed, {row["failed"]} failed'
                     + (f': {", ".join(row["names"])}.' if row.get('names') else '.') for row in rows)
