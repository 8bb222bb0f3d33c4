"""Stands for `stmoe train` and `stmoe eval` in tests: no model, the same files, signals and codes.

A training of seed 13 fails. $FAKE_DELAY are the seconds of a step.
"""

import json
import os
import pathlib
import signal
import sys
import time


def train(workdir, fields):
  """Logs the steps that are missing; returns the exit code."""
  code = []
  for number, value in ((signal.SIGTERM, 85), (signal.SIGINT, 130)):
    signal.signal(number, lambda *_, value=value: code.append(value))
  file = workdir / 'metrics.jsonl'
  step = len(file.read_text().splitlines()) if file.is_file() else 0
  print(f'from step {step}', flush=True)
  print('group of its own' if os.getpgrp() == os.getpid() else 'group of its parent', flush=True)
  if fields.get('seed') == '13':
    print('bad luck\nstmoe: seed 13 is not allowed', flush=True)
    return 2
  while step < int(fields['train.steps']):
    if code:
      print(f'stopped after step {step}', flush=True)
      return code[0]
    time.sleep(float(os.environ.get('FAKE_DELAY', 0)))
    step += 1
    with file.open('a') as stream:
      stream.write(json.dumps({'step': step}) + '\n')
  (workdir / 'DONE').write_text(json.dumps({'step': step}))
  return 0


def evaluate(workdir, sweep):
  """Adds a line for each value to evals.jsonl."""
  field, _, values = sweep.partition('=')
  step = json.loads((workdir / 'DONE').read_text())['step']
  with (workdir / 'evals.jsonl').open('a') as stream:
    for value in filter(None, values.split(';')):
      stream.write(json.dumps({'field': field, 'value': value, 'step': step, 'eval/loss': 1.0}) + '\n')
  return 0


if __name__ == '__main__':
  words = sys.argv[1:]
  if words[0] == 'upcycle':
    sys.exit(0 if (pathlib.Path(words[1]) / 'DONE').is_file() else 1)
  if words[0] == 'eval':
    sys.exit(evaluate(pathlib.Path(words[1]), words[3]))
  pairs = [word.removeprefix('--config.').split('=', 1) for word in words[4:]]
  sys.exit(train(pathlib.Path(words[3]), dict(pairs)))
