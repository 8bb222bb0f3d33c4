"""Grids of overrides: pure functions on lists of dicts 'a.b' -> value, which sweep files put together.

>>> grid = product(over('seed', [0, 1]), over('train.steps', [10, 20]))
>>> grid[1]
{'seed': 0, 'train.steps': 20}
>>> len(chain(grid, over('seed', [7]))), subsample(grid, 2, seed=0) == subsample(grid, 2, seed=0)
(5, True)
"""

import builtins
import itertools
import random

from stmoe import errors


def over(field, values):
  """Returns a dict for each of `values`: [{field: value}, ...]."""
  return [{field: value} for value in values]


def product(*grids):
  """Returns every combination of a dict of each grid, merged; the last grid varies fastest.

  Raises UserError if a field is in two grids.
  """
  return [_merged(dicts) for dicts in itertools.product(*grids)]


def zip(*grids):
  """Returns the first dicts of all grids merged, then the second dicts, ...

  Raises UserError if the grids differ in length or a field is in two grids.
  """
  lengths = [len(grid) for grid in grids]
  if len(set(lengths)) > 1:
    raise errors.UserError(f'combine.zip: grids of {", ".join(map(str, lengths))} entries; give as many')
  return [_merged(dicts) for dicts in builtins.zip(*grids)]


def chain(*grids):
  """Returns the dicts of all grids, one grid after the other."""
  return list(itertools.chain(*grids))


def subsample(grid, n, seed=0):
  """Returns `n` different dicts of `grid`, in its order: the same for the same seed.

  Raises UserError if `grid` has fewer dicts.
  """
  if not 0 <= n <= len(grid):
    raise errors.UserError(f'combine.subsample: {n} of a grid of {len(grid)}; nearest: {max(0, len(grid))}')
  chosen = random.Random(seed).sample(range(len(grid)), n)
  return [grid[i] for i in sorted(chosen)]


def _merged(dicts):
  merged = {}
  for fields in dicts:
    twice = merged.keys() & fields.keys()
    if twice:
      raise errors.UserError(f'combine: {", ".join(sorted(twice))} is in two grids; leave it out of one')
    merged |= fields
  return merged
