"""The training state: plain nested dicts of arrays, their logical axes and shardings, born sharded.

  params        parameters of the model, float32 (or bfloat16, see `modules.maker`)
  router_state  what routers keep across steps (see `stmoe.router_state`)
  opt_state     statistics of the optimizer
  step, key     i32[] steps done, and the key every step's randomness is folded from
  counts        tokens u32[2] (low and high word of the target tokens seen); skipped i32[], steps
                with a non-finite loss or gradient; bad i32[], how many of the last steps in a row were such
"""

import contextlib
import dataclasses
import functools
import math
import os
import typing
import zlib

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
import numpy as np

from stmoe import axes
from stmoe import errors
from stmoe import lookup
from stmoe import modules
from stmoe import router_state
from stmoe.core import seeds
from stmoe.parts import adapting
from stmoe.train import groups
from stmoe.train import optimizers


@dataclasses.dataclass(frozen=True)
class Blueprint:
  """A training state without its numbers.

  graphdef:  the model's structure; `model(blueprint, ...)` puts numbers into it.
  optimizer: of `groups.optimizer`.
  shapes:    tree like the state of ShapeDtypeStructs that carry their NamedSharding.
  mesh:      the mesh of those shardings.
  groups:    the `groups.Group`s of the parameters; the optimizer knows only parameters that train.
  kinds:     dict kind of layer -> paths of its parameters that train, see `groups.kinds`.
  target:    a `targets.Target`: what the model is to predict.
  """
  graphdef: object
  optimizer: optimizers.Optimizer
  shapes: dict
  mesh: jax.sharding.Mesh
  groups: tuple[groups.Group, ...]
  kinds: dict[str, frozenset]
  target: typing.Any

  def model(self, params, routers):
    """Returns the model with these numbers in it."""
    return adapting.view(nnx.merge(self.graphdef, params, routers))

  def trainable(self, params):
    """Returns the part of `params`, or of a tree like them, that trains."""
    return groups.take(params, groups.trained(self.groups))

  def evaluated(self, state):
    """Returns the parameters of a training state that evaluation reads: averages, where there are any."""
    return groups.put(state['params'], state['opt_state'].get(optimizers.AVERAGES, {}))

  def shardings(self):
    """Returns the tree of NamedShardings of the state."""
    return jax.tree.map(lambda s: s.sharding, self.shapes)


def evaluated(leaf, inventory):
  """Returns where a checkpoint has what evaluation reads for its array `leaf` (keys): the average, if any.

  inventory: dict path -> facts of the checkpoint's arrays.
  """
  average = ('opt_state', optimizers.AVERAGES, *leaf[1:])
  return average if leaf[0] == 'params' and '/'.join(map(str, average)) in inventory else leaf


def make_mesh(sizes, devices=None):
  """Returns the mesh of configuration section `mesh`; a size may be -1: the devices left over.

  Raises UserError when the sizes do not multiply to the number of devices.
  """
  sizes = {axis: n for axis, n in sizes.items() if axis != 'rules'}
  devices = jax.devices() if devices is None else devices
  fixed = math.prod(n for n in sizes.values() if n != -1)
  for axis, n in sizes.items():
    if axis not in axes.MESH_AXES or n == 0 or n < -1:
      raise errors.UserError(f'mesh.{axis}={n}: mesh axes are {", ".join(axes.MESH_AXES)}, sizes are '
                             f'positive or -1{errors.nearest(axis, axes.MESH_AXES)}')
  free = [axis for axis, n in sizes.items() if n == -1]
  if len(free) > 1 or fixed > len(devices) or len(devices) % fixed or not free and fixed != len(devices):
    raise errors.UserError(f'mesh {sizes} does not fit {len(devices)} device(s); one of its sizes may be -1; '
                           f'nearest: {_fitting(sizes, len(devices))}')
  return axes.make_mesh(**sizes | {axis: len(devices) // fixed for axis in free}, devices=devices)


def _fitting(sizes, number):
  """The sizes to change, as options, for the mesh to fit `number` devices: to the next smaller divisors."""
  rest, left, fits = next((axis for axis, n in sizes.items() if n == -1), 'data'), number, {}
  for axis in sorted(axis for axis in axes.MESH_AXES if axis != rest):
    wanted = max(1, sizes.get(axis, 1))
    fits[axis] = max(n for n in range(1, min(wanted, left) + 1) if left % n == 0)
    left //= fits[axis]
  fits[rest] = -1 if sizes.get(rest) == -1 else left
  return ' '.join(f'--config.mesh.{axis}={n}' for axis, n in fits.items() if n != sizes.get(axis, 1))


@contextlib.contextmanager
def on_mesh(section, devices=None):
  """Context with the mesh and the sharding rules of configuration section `mesh`; gives the mesh.

  Raises UserError for sizes that do not fit the devices, or rules that do not exist.
  """
  with axes.use(make_mesh(section, devices), axes.rules(section.get('rules', ''))) as mesh:
    yield mesh


def fold(seed, name):
  """Returns the key of purpose `name` of a run; the same seed and name, the same key."""
  return purpose(seeds.key(seed), name)


def purpose(key, name):
  """Returns the key of purpose `name` of a run whose seed has the PRNG key `key`."""
  return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def build(cfg, key=None):
  """Returns a new model of configuration `cfg`; call it abstractly or under jit.

  key: PRNG key of the seed; None = of `cfg.seed`. Where the key is an argument of a jitted function, all
    seeds share what was compiled.
  """
  c = cfg.to_dict()
  rngs = nnx.Rngs(params=purpose(seeds.key(c['seed']) if key is None else key, 'params'))
  model = modules.maker(c['model'])(blocks=c['blocks'], rngs=rngs)
  return modules.with_reader(model, lookup.recipe('target', c['loss'])(), c['model']['d_model'], rngs)


def blueprint(cfg, mesh):
  """Returns the Blueprint of a training state of `cfg` on `mesh`; computes no array.

  Raises UserError for a parameter whose axis the mesh does not divide.
  """
  model = axes.abstract(lambda: build(cfg))
  graphdef, params, routers = nnx.split(model, nnx.Param, router_state.RouterState)
  labels = modules.labels(model)
  all_groups = groups.of(cfg, labels)
  names, router_names = axes.names_of(params), axes.names_of(routers)
  params, routers = nnx.to_pure_dict(params), nnx.to_pure_dict(routers)
  optimizer = groups.optimizer(all_groups, functools.partial(_optimizer, cfg.optimizer), names, params,
                               cfg.train.steps)
  slots = jax.eval_shape(optimizer.init, groups.take(params, groups.trained(all_groups)))
  shapes = dict(params=params, router_state=routers, opt_state=slots,
                **jax.eval_shape(lambda: _counters(seeds.key(cfg.seed))))
  replicated = lambda tree: jax.tree.map(lambda s: (None,) * len(s.shape), tree)
  named = {part: replicated(tree) for part, tree in shapes.items()}
  named |= dict(params=names, opt_state=optimizer.names, router_state=router_names)
  check_divisible(params, names, mesh)
  check_divisible(routers, router_names, mesh)
  place = lambda n, s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=NamedSharding(mesh, axes.spec(n)))
  placed = jax.tree.map(place, named, shapes, is_leaf=axes.is_names)
  target = lookup.recipe('target', cfg.loss)()
  return Blueprint(graphdef, optimizer, placed, mesh, all_groups, groups.kinds(all_groups, labels), target)


def _optimizer(section, group, names, shapes):
  """The optimizer of configuration section `optimizer` for the parameters of a group."""
  decay = {} if group.weight_decay is None else dict(weight_decay=group.weight_decay)
  return optimizers.of(section.to_dict() | decay, names, shapes)


def init(cfg, plan):
  """Returns the first training state, every array born with its sharding."""
  begin, words = beginning(cfg, plan)
  return begin(words)


def beginning(cfg, plan):
  """Returns (a jitted function of the words of a key that returns the first training state, those words).

  The words u32[...] are a host's array: all processes of a job have the same.
  """
  begin = lambda words: fresh(cfg, plan, jax.random.wrap_key_data(words))
  jitted = jax.jit(begin, out_shardings=plan.shardings(), compiler_options=_of_draws(plan.mesh))
  return jitted, np.asarray(jax.random.key_data(seeds.key(cfg.seed)))


def _of_draws(mesh):
  """The compiler's options for drawing parameters, or None. What XLA_FLAGS says about the level stays.

  At its highest level LLVM takes 4.7 instead of 1.9 s for those of lm/quickstart:method=switch on one core,
  and the program is no faster. Its numbers are the same.
  """
  level = 'xla_backend_optimization_level'
  on_cpus = all(device.platform == 'cpu' for device in mesh.devices.flat)
  return {level: 2} if on_cpus and level not in os.environ.get('XLA_FLAGS', '') else None


def fresh(cfg, plan, key=None):
  """Returns the first training state, for use under jit: an unused part of it is never computed.

  key: as for `build`.
  """
  key = seeds.key(cfg.seed) if key is None else key
  _, params, routers = nnx.split(build(cfg, key), nnx.Param, router_state.RouterState)
  params = nnx.to_pure_dict(params)
  return dict(params=params, router_state=nnx.to_pure_dict(routers),
              opt_state=plan.optimizer.init(plan.trainable(params)), **_counters(key))


def _counters(key):
  counts = dict(tokens=jnp.zeros((2,), jnp.uint32), skipped=jnp.zeros((), jnp.int32),
                bad=jnp.zeros((), jnp.int32))
  return dict(step=jnp.zeros((), jnp.int32), key=purpose(key, 'train'), counts=counts)


def check_divisible(shapes, names, mesh):
  """Raises UserError for the first array that the rules split twice, or not into equal parts."""
  named = jax.tree.leaves_with_path(names, is_leaf=axes.is_names)
  for (path, logical), shape in zip(named, jax.tree.leaves(shapes)):
    where = jax.tree_util.keystr(path, simple=True, separator='/')
    for name, over, size in zip(logical, axes.over(logical, where), shape.shape):
      devices = math.prod(mesh.shape[axis] for axis in over)
      if size % devices:
        what = 'experts' if name == 'expert' else f'the axis {name!r} of'
        raise errors.UserError(f'mesh.{" x ".join(over)}={devices}: {what} {where}: {size} is not divisible '
                               f'by {devices}; nearest: {_dividing(mesh, over, size)}')


def _dividing(mesh, over, size):
  """The sizes of the mesh axes `over`, as fields, that divide `size` and the devices, where there are any."""
  left, near = size if isinstance(mesh, jax.sharding.AbstractMesh) else math.gcd(size, mesh.size), []
  for axis in over:
    fits = max(n for n in range(1, mesh.shape[axis] + 1) if left % n == 0)
    left //= fits
    near.append(f'mesh.{axis}={fits}')
  return ' '.join(near)
