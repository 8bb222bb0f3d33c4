"""Tiles of the grouped products, each timed on the device at hand: a table for `pallas_kernels/tuning`.

`python -m stmoe.bench.device --tables DIR` writes the table of these rows beside the results, under the name
that the kernels look for. The table counts once it lies in `pallas_kernels/tuning`.
"""

import functools

from pallas_kernels import benchmark
from stmoe.bench.device import pending
from stmoe.bench.device import markdown
from stmoe.bench.device.pieces import products

WORTH = 6
MODELS = ('mixtral', 'olmoe', 'deepseek_moe', 'deepseek_v3', 'fine_grained')
ROUNDS = 3
COLUMNS = ('model', 'kernel', 'shape', 'fastest tiles', 'TFLOP/s', 'gain over the first')


def jobs(dry):
  """Returns a Job for each operation and model; CPUs have no tiles."""
  if dry:
    return []
  return [pending.Job(f'tuning {op} {model}', 12, functools.partial(
      products.begin, op, benchmark.MODELS[model], ROUNDS, True))
          for model in MODELS for op in ('tgmm', 'gmm')]


def tiled(record):
  """Returns the rows of a record that belong into the table of tiles."""
  return [row for row in record['rows'] if row.get('tiles')]


def table(records):
  """Returns a table with the fastest tiles of each kernel and shape."""
  lines = []
  for name, record in records.items():
    groups = {}
    for row in tiled(record):
      groups.setdefault((row['op'], tuple(row['shape'])), []).append(row)
    for (op, shape), rows in groups.items():
      best = min(rows, key=lambda row: row['seconds'])
      lines.append((name.rpartition(' ')[2], op, ' x '.join(map(str, shape)),
                    ' '.join(f'{key}={value}' for key, value in best['tiles'].items()),
                    f'{best["tflops"]:.0f}', f'{rows[0]["seconds"] / best["seconds"]:.2f}'))
  return markdown.of(COLUMNS, lines)
