"""The kernels by themselves: grouped products and their gradients, sums over choices, routing.

Each is timed beside a dense product of as many FLOPs, or beside XLA's own operations, and beside PyTorch's
where installed; dW at Mixtral's shape comes first.
"""

import functools
import importlib

from pallas_kernels import benchmark
from stmoe.bench.device import pending
from stmoe.bench.device import markdown

WORTH = 4
ORDER = (('tgmm', 'mixtral'), ('gmm', 'mixtral'), ('combine', 'olmoe'), ('route', 'olmoe'),
         ('tgmm', 'deepseek_v3'), ('tgmm', 'olmoe'), ('gmm', 'olmoe'), ('combine', 'mixtral'),
         ('route', 'mixtral'), ('combine', 'deepseek_moe'), ('route', 'deepseek_moe'),
         ('tgmm', 'deepseek_moe'), ('gmm', 'deepseek_moe'), ('gmm', 'deepseek_v3'), ('route', 'deepseek_v3'),
         ('combine', 'deepseek_v3'), ('tgmm', 'fine_grained'), ('gmm', 'fine_grained'))
SECONDS = dict(gmm=8, tgmm=6, combine=2, route=2)
ROUNDS = 9
TINY = (16, 8, 12, 4, 2)
COLUMNS = ('model', 'kernel', 'shape', 'TFLOP/s', 'ms', 'of the floor')


def jobs(dry):
  """Returns a Job for each operation and model."""
  if dry:
    return [_job('combine', 'tiny', TINY, 1)]
  return [_job(op, model, benchmark.MODELS[model], ROUNDS) for op, model in ORDER]


def _job(op, model, shape, rounds):
  begin_here = functools.partial(begin, op, shape, rounds, False)
  return pending.Job(f'products {op} {model}', SECONDS[op], begin_here)


def begin(op, shape, rounds, tune, submit):
  """The Job's `begin`: a future for every program; `tune`: with each of several tiles."""
  cases = list(importlib.import_module(f'pallas_kernels.{op}.bench').cases([shape], tune))
  queue = lambda make, inputs: submit(functools.partial(make, inputs))
  programs = [benchmark.programs(case, queue) for case in cases]
  return [future for futures in programs for future in futures], lambda: rows(cases, programs, rounds)


def rows(cases, programs, rounds):
  """Returns the rows of all Cases, and one with an `error` for each Variant that was left out."""
  notes = []
  found = [row for case, futures in zip(cases, programs)
           for row in benchmark.timed(case, futures, rounds, notes.append)]
  if not found:
    raise ValueError(notes[0])
  return [*found, *(dict(error=note) for note in notes)]


def table(records):
  """Returns a table with a row per kernel and shape."""
  cells = lambda model, row: (model, row['op'], ' x '.join(map(str, row['shape'])), f'{row["tflops"]:.0f}',
                              f'{1e3 * row["seconds"]:.3f}', f'{row["ratio"]:.2f}')
  return markdown.of(COLUMNS, [cells(name.rpartition(' ')[2], row) for name, record in records.items()
                               for row in record['rows'] if 'error' not in row])
