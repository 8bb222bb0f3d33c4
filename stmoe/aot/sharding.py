"""How a training state lies on a mesh of devices that need not exist: specs and bytes of every array."""

import collections
import math
import re

from flax import nnx
import jax
from jax.sharding import AbstractMesh, AxisType
import numpy as np

from stmoe import axes
from stmoe import errors
from stmoe.analysis import table
from stmoe.train import state as states

GIB = 2**30


def mesh_of(text):
  """Returns dict(data, expert, model) of '8x4x2'; raises UserError for another text."""
  sizes = text.split('x')
  if len(sizes) != len(axes.MESH_AXES) or not all(n.isdecimal() and int(n) > 0 for n in sizes):
    given = [str(max(int(n), 1)) for n in re.findall(r'[0-9]+', text)] or ['8']
    near = 'x'.join([*given, '1', '1'][:len(axes.MESH_AXES)])
    raise errors.UserError(f'--mesh {text}: three sizes, {" x ".join(axes.MESH_AXES)}; nearest: {near}')
  return dict(zip(axes.MESH_AXES, map(int, sizes)))


def rows(cfg, sizes):
  """Returns [(part, path, logical axes or None, spec, shape, bytes, bytes per device)] of all arrays.

  part: params, opt_state, router_state, or 'counters' for the few numbers beside them. Only arrays of
  parameters and of the routers' state have logical axes.

  Args:
    cfg:   ConfigDict of an experiment; of its mesh only the rules are used.
    sizes: dict(data, expert, model).
  Raises:
    UserError: for sizes that do not divide an array.
  """
  mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
  with axes.use(mesh, axes.rules(cfg.mesh.get('rules', ''))):
    blueprint = states.blueprint(cfg, mesh)
  model = nnx.eval_shape(lambda: states.build(cfg))
  names = {_path(path): tuple(variable.get_metadata().get('out_sharding') or ())
           for path, variable in nnx.to_flat_state(nnx.state(model))}
  listed = []
  for part, tree in blueprint.shapes.items():
    for path, leaf in jax.tree.leaves_with_path(tree):
      where = _path(getattr(key, 'key', getattr(key, 'idx', getattr(key, 'name', key))) for key in path)
      whole, piece = (math.prod(shape) * itemsize(leaf.dtype)
                      for shape in (leaf.shape, leaf.sharding.shard_shape(leaf.shape)))
      named = part in ('params', 'opt_state', 'router_state')
      listed.append((part if named else 'counters', where, names.get(where) if part != 'opt_state' else None,
                    leaf.sharding.spec, leaf.shape, whole, piece))
  return listed


def _path(keys):
  return '/'.join(map(str, keys))


def itemsize(dtype):
  """Returns the bytes of a number; of a PRNG key its two words."""
  return 8 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else np.dtype(dtype).itemsize


def totals(found):
  """Returns dict part -> (arrays, bytes, bytes per device) of `rows`, with 'all' last."""
  sums = collections.defaultdict(lambda: [0, 0, 0])
  for part, *_, whole, piece in found:
    for name in (part, 'all'):
      sums[name] = [a + b for a, b in zip(sums[name], (1, whole, piece))]
  everything = sums.pop('all')
  return {part: tuple(row) for part, row in [*sums.items(), ('all', everything)]}


def lines(found, sizes):
  """Returns the report of `rows` as lines: parameters, then the other parts by their sums."""
  text = lambda names: ','.join(name or '-' for name in names or ())
  where = lambda spec: ','.join('-' if e is None else e if isinstance(e, str) else '+'.join(e) for e in spec)
  cells = [[path, text(names), where(spec), 'x'.join(map(str, shape)) or '()', f'{whole:,}', f'{piece:,}']
           for part, path, names, spec, shape, whole, piece in found if part in ('params', 'router_state')]
  head = ['array', 'logical axes', 'mesh axes', 'shape', 'bytes', 'per device']
  sums = [[part, f'{count:,}', f'{whole:,}', f'{piece:,}', f'{piece / GIB:.3f}']
          for part, (count, whole, piece) in totals(found).items()]
  mesh = ' x '.join(f'{axis} {n}' for axis, n in sizes.items())
  return [*table.plain(head, cells).splitlines(), '', f'mesh {mesh}: {math.prod(sizes.values())} devices',
          *table.plain(['part', 'arrays', 'bytes', 'per device', 'GiB'], sums).splitlines()]
