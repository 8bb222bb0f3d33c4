"""Conversion of parameters between the scanned, the unrolled and the numbered form of a model.

A stack holds `segments`, one per entry of its pattern. Scanned, a segment is one unit
whose arrays have a leading axis of its repeats; unrolled, it is a list of units. Numbered, a stack
holds `layers`, its blocks counted through: the form of surgeries, whatever the pattern. Pure
dicts go in and come out: parameters, router state or optimizer slots shaped like them.
"""

import itertools

import jax
import jax.numpy as jnp

from stmoe import errors
from stmoe.surgery import aside

TIED = 'block_'                      # begins the names of whole blocks in `tied`, see `parts/tied`


def unroll(params):
  """Returns the pure dict of a model with `scan_layers=False` from the pure dict of a scanned model."""
  def units(unit):
    [number] = {len(a) for a in jax.tree.leaves(unit)}               # of every array
    return {i: jax.tree.map(lambda a, i=i: a[i], unit) for i in range(number)}
  return _map_segments(params, units)


def roll(params):
  """Returns the pure dict of a scanned model from the pure dict of one with `scan_layers=False`."""
  stack = lambda *leaves: jnp.stack(leaves)
  return _map_segments(params, lambda units: jax.tree.map(stack, *(units[i] for i in range(len(units)))))


def is_scanned(params):
  """Returns whether the stacks of a pure dict are scanned: a segment is a unit, not a list of units."""
  if not isinstance(params, dict):
    return False
  if 'segments' in params:
    return any('blocks' in segment for segment in params['segments'].values())
  return any(is_scanned(value) for value in params.values())


def visit(params, make, path=()):
  """Returns unrolled `params` with every leaf replaced by `make(path, leaf)`.

  In `path` the blocks of a stack are numbered through, whatever its pattern: ('decoder', 'layers', 3,
  'layer', 'wi') is the same place for patterns ('dd', 6) and ('d', 12).
  """
  if not isinstance(params, dict):
    return make(path, params)
  visited, number = {}, itertools.count()
  for key, value in params.items():
    _check_tied(key, value)
    visited[key] = visit(value, make, (*path, key)) if key != 'segments' or not _of_stack(value) else {
        i: {r: {'blocks': {place: visit(unit['blocks'][place], make, (*path, 'layers', next(number)))
                           for place in sorted(unit['blocks'])}}
            for r, unit in sorted(units.items())}
        for i, units in sorted(value.items())}
  return visited


def flat(params: dict) -> dict[tuple, jax.Array]:
  """Returns dict path, see `visit`, -> leaf [...] of a scanned or unrolled pure dict."""
  leaves: dict = {}
  visit(unroll(params) if is_scanned(params) else params, leaves.__setitem__)
  return leaves


def _of_stack(segments):
  """Whether unrolled `segments` are a stack's: layers may call parts of their own so (`multihash`)."""
  return all('blocks' in unit for units in segments.values() for unit in units.values())


def _check_tied(key, value):
  """Raises UserError where blocks are in no place of their own: all of a letter are one."""
  letters = [name.removeprefix(TIED) for name in value if name.startswith(TIED)] if key == 'tied' else []
  if letters:
    raise errors.UserError(f'blocks.{letters[0]}.tied: layers of this letter are one block, no layer changes '
                           f'by itself; nearest: a run with blocks.{letters[0]}.tied=False')


def numbered(params: dict) -> dict:
  """Returns the pure dict of a model, scanned or not, with `layers` of numbered blocks in its stacks.

  >>> unit = dict(blocks={0: dict(w=jnp.array([1, 3])), 1: dict(w=jnp.array([2, 4]))})
  >>> blocks = numbered(dict(stack=dict(segments={0: unit})))['stack']['layers']
  >>> {number: int(block['w']) for number, block in blocks.items()}
  {0: 1, 1: 2, 2: 3, 3: 4}
  """
  blocks: dict = {}
  visit(unroll(params) if is_scanned(params) else params, lambda path, leaf: put(blocks, path, leaf))
  return blocks


def placed(blocks: dict, like: dict) -> dict:
  """Returns the pure dict of a model from its numbered form `blocks`, in the form of `like`.

  Args:
    like: pure dict of the same model, scanned or not, of anything with a shape.
  """
  scanned = is_scanned(like)
  repeated = lambda unit: dict.fromkeys(range(jax.tree.leaves(unit)[0].shape[0]), unit)
  model = visit(_map_segments(like, repeated) if scanned else like, lambda path, _: at(blocks, path))
  return roll(model) if scanned else model


class Slices:
  """Where an array of a model lies in its numbered form: `paths`, one of each layer if it is `stacked`."""

  def __init__(self, paths: list[tuple], stacked: bool = False):
    self.paths, self.stacked = paths, stacked


def sources(like: dict) -> dict:
  """Returns a pure dict like `like` of Slices: where `placed` takes each array from.

  Args:
    like: pure dict of a model, scanned or not, of anything with a shape.
  """
  scanned = is_scanned(like)
  repeated = lambda unit: dict.fromkeys(range(jax.tree.leaves(unit)[0].shape[0]), unit)
  found = visit(_map_segments(like, repeated) if scanned else like, lambda path, _: Slices([path]))
  join = lambda *parts: Slices([part.paths[0] for part in parts], True)
  return _map_segments(found, lambda units: jax.tree.map(
      join, *(units[i] for i in range(len(units))))) if scanned else found


def at(tree: dict, path: tuple):
  """Returns what a nested dict holds at `path`, a tuple of keys; a deferred array is fetched."""
  return aside.fetched(held(tree, path))


def held(tree: dict, path: tuple):
  """Returns what a nested dict holds at `path`, a tuple of keys, as it is."""
  for key in path:
    tree = tree[key]
  return tree


def put(tree: dict, path: tuple, value) -> None:
  """Sets `value` at `path`, a tuple of keys, in nested dict `tree`, in place."""
  for key in path[:-1]:
    tree = tree.setdefault(key, {})
  tree[path[-1]] = value


def together(*trees: dict) -> dict:
  """Returns the nested dict with the leaves of all of `trees`, such as parameters and router state."""
  joined: dict = {}
  for tree in trees:
    for key, value in tree.items():
      joined[key] = together(joined.get(key, {}), value) if isinstance(value, dict) else value
  return joined


def _map_segments(tree, convert):
  """`tree` with every entry of every 'segments' dict converted."""
  if not isinstance(tree, dict):
    return tree
  return {key: {i: convert(segment) for i, segment in value.items()} if key == 'segments'
          else _map_segments(value, convert) for key, value in tree.items()}
