"""Conversion of parameters between the scanned and the unrolled form of a model.

A stack holds `segments`, one per entry of its pattern. Scanned, a segment is one unit
whose arrays have a leading axis of its repeats; unrolled, it is a list of units. Pure
dicts in, pure dicts out: parameters, router state or optimizer slots shaped like them.
"""

import itertools

import jax
import jax.numpy as jnp


def unroll(params):
  """Returns the pure dict of a model with `scan_layers=False` from that of a scanned one."""
  take = lambda unit, i: jax.tree.map(lambda a: a[i], unit)
  return _map_segments(params, lambda unit: {i: take(unit, i) for i in range(len(jax.tree.leaves(unit)[0]))})


def roll(params):
  """Returns the pure dict of a scanned model from that of one with `scan_layers=False`."""
  stack = lambda *leaves: jnp.stack(leaves)
  return _map_segments(params, lambda units: jax.tree.map(stack, *(units[i] for i in range(len(units)))))


def is_scanned(params):
  """Returns whether the stacks of a pure dict are scanned: a segment is a unit, not a list of units."""
  if not isinstance(params, dict):
    return False
  if 'segments' in params:
    return 'blocks' in params['segments'][0]
  return any(is_scanned(value) for value in params.values())


def visit(params, make, path=()):
  """Returns unrolled `params` with every leaf replaced by `make(path, leaf)`.

  In `path` the blocks of a stack are numbered through, whatever its pattern: ('decoder', 'layers', 3,
  'layer', 'wi') is the same place for patterns ('dd', 6) and ('d', 12).
  """
  if not isinstance(params, dict):
    return make(path, params)
  made, number = {}, itertools.count()
  for key, value in params.items():
    made[key] = visit(value, make, (*path, key)) if key != 'segments' else {
        i: {r: {'blocks': {place: visit(unit['blocks'][place], make, (*path, 'layers', next(number)))
                           for place in sorted(unit['blocks'])}}
            for r, unit in sorted(units.items())}
        for i, units in sorted(value.items())}
  return made


def _map_segments(tree, convert):
  """`tree` with every entry of every 'segments' dict converted."""
  if not isinstance(tree, dict):
    return tree
  return {key: {i: convert(segment) for i, segment in value.items()} if key == 'segments'
          else _map_segments(value, convert) for key, value in tree.items()}
