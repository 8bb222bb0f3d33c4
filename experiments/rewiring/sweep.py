"""Sparse language models of code, two and one of eight experts a token, on which rewiring is measured.

They are the starts of `compression` and have the same digits: folders may be copied from there.
"""

from stmoe.experiments import sizes
from stmoe.experiments.compression import sweep as compression

MODELS = tuple(compression.STARTS)


def runs(size='small'):
  """Yields a run of every model and seed."""
  for seed in sizes.seeds(size):
    for name in MODELS:
      yield compression.start(size, name, name, seed)
