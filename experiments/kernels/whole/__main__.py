"""Training steps and written texts of whole models, here and in Hugging Face transformers, in turn.

  python -m stmoe.experiments.kernels.whole --other PYTHON --sizes small,fine,wide,dense
  python -m stmoe.experiments.kernels.whole --other PYTHON --sizes small --decode --batch-sizes 1,8,32

PYTHON is an interpreter with torch and transformers. It writes a model with random weights, and both sides
open that. The column `apart` says how far the first losses are apart, or which share of the tokens of the
first texts is another. On each side the form with the lowest median counts. Both sides have the memory
settings of the command `stmoe`.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

import numpy as np

from stmoe import errors
from stmoe import ranges
from stmoe.bench import layers as bench
from stmoe.experiments.kernels.whole import sizes
from stmoe.experiments.kernels.whole import turns

PACKAGE = 'stmoe.experiments.kernels.whole'
OURS = 'scanned', 'unrolled'
THEIRS = pathlib.Path(__file__).with_name('theirs.py')
PROMPT = 64                              # tokens of every row before the first that is written
FETCHED = 8                              # rows up to which transformers' fetched matrices are timed


def measure(name: str, other: str, rounds: int, times: int, written: tuple[int, int] | None = None) -> dict:
  """Returns a row: facts, `seconds` dict form -> those of every round, and what `turns.compared` says.

  Args:
    name:   of a size. other: the interpreter with transformers.
    rounds, times: see `turns.in_turn`.
    written: (rows, tokens of each) of texts; None = training steps.
  """
  size = sizes.SIZES[name]
  shape = (written[0], PROMPT) if written else (size['B'], size['T'])
  ids = np.random.default_rng(0).integers(3, size['V'], shape).tolist()
  with tempfile.TemporaryDirectory() as folder:
    _make(other, folder, size)
    job = dict(kind='decode' if written else 'train', folder=folder, ids=ids, rate=sizes.RATE,
               length=written and written[1])
    workers = _started(other, job, size)
    try:
      taken = turns.in_turn(workers, rounds, times)
    finally:
      for worker in workers.values():
        worker.close()
  side = lambda own: {form: seconds for form, seconds in taken.items() if (form in OURS) == own}
  return dict(name=name, rows=shape[0], tokens=shape[0] * (written or shape)[1], seconds=taken,
              **turns.compared(side(True), side(False)), **agreement(workers))


def _make(other, folder, size):
  """Has transformers write the model of a size into a folder."""
  job = dict(kind='make', folder=folder, config=sizes.config(size))
  made = subprocess.run([other, str(THEIRS), json.dumps(job)], capture_output=True, text=True, check=False)
  if made.returncode:
    raise errors.UserError(f'{other}: {(made.stderr.strip() or "ended").splitlines()[-1]}; nearest: an '
                           'interpreter with torch and transformers')


def _started(other, job, size):
  """dict form -> Worker of either side.

  Fetched matrices (batched_mm) take too much memory to train with, and minutes for many prompts.
  """
  train = job['kind'] == 'train'
  fetched = not train and len(job['ids']) <= FETCHED
  memory = dict(GLIBC_TUNABLES=turns.KEPT if train else turns.PAGES)
  begin = lambda command, form: turns.Worker([*command, json.dumps(job | dict(form=form))], memory)
  here = [sys.executable, '-m', f'{PACKAGE}.ours']
  mine = {form: begin(here, form) for form in (OURS if train else OURS[1:])}
  forms = [form for form in sizes.forms(size) if fetched or form != 'batched_mm']
  return mine | {form or 'dense': begin([other, str(THEIRS)], form) for form in forms}


def agreement(workers: dict) -> dict:
  """Returns dict(parameters, versions, apart) of dict form -> Worker, see `apart`."""
  facts = [worker.facts for worker in workers.values()]
  return dict(parameters=facts[0]['parameters'], versions=facts[0]['versions'] | facts[-1]['versions'],
              apart=apart([fact['first'] for fact in facts]))


def apart(first: list) -> float:
  """Returns how far the first results are from that of the first form: of losses, or the share of other ids.

  >>> apart([2.0, 2.5, 1.75]), apart([[[1, 2]], [[1, 3]]])
  (0.5, 0.5)
  """
  first = [np.asarray(result) for result in first]
  differ = (lambda a: np.mean(a != first[0])) if first[0].ndim else (lambda a: abs(a - first[0]))
  return float(max(map(differ, first[1:])))


HEADING = ['| model | rows | here | tokens/s | transformers | tokens/s | times as fast | of rounds | apart |',
           '|---|---|---|---|---|---|---|---|---|']


def line(row: dict) -> str:
  """Returns a row of `measure` as a line of a table under HEADING."""
  rate = lambda form: f'{row["tokens"] / statistics.median(row["seconds"][form]):,.0f}'
  return (f'| {row["name"]} | {row["rows"]} | {row["ours"]} | {rate(row["ours"])} | {row["theirs"]} | '
          f'{rate(row["theirs"])} | {row["ratio"]:.2f} | {row["low"]:.2f} to {row["high"]:.2f} | '
          f'{row["apart"]:.1e} |')


def main():
  """Prints the table; returns the exit code."""
  parser = argparse.ArgumentParser(f'python -m {PACKAGE}', description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--other', required=True, metavar='PYTHON', help='with torch and transformers')
  parser.add_argument('--sizes', default='small,fine,wide,dense',
                      help='out of small, fine, wide, dense (all four by default) and tiny')
  parser.add_argument('--rounds', type=ranges.Count, default=9)
  parser.add_argument('--times', type=ranges.Count, default=2, help='runs in a round (default: 2)')
  parser.add_argument('--decode', action='store_true', help='write texts instead of training')
  parser.add_argument('--batch-sizes', default='1,8,32', help='of --decode (default: 1,8,32)')
  parser.add_argument('--length', type=ranges.Count, default=64, help='tokens of a text (default: 64)')
  parser.add_argument('--json', type=pathlib.Path, help='also write the rows to this file')
  args = parser.parse_args()
  try:
    names = bench.names(args.sizes, list(sizes.SIZES), 'sizes')
    rows = [ranges.Count.typed('--batch-sizes', word) for word in args.batch_sizes.split(',')]
    written = [(number, args.length) for number in rows] if args.decode else [None]
    _print(args, [(name, what) for name in names for what in written])
  except errors.UserError as error:
    print(f'stmoe: {error}', file=sys.stderr)
    return 2
  return 0


def _print(args, cases):
  found = []
  print('\n'.join(HEADING))
  for name, written in cases:
    found.append(measure(name, args.other, args.rounds, args.times, written))
    print(line(found[-1]), flush=True)
    if args.json:
      args.json.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
  sys.exit(main())
