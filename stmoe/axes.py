"""The closed vocabulary of logical axis names, and how they become shardings.

Every parameter of the project is made by `param`, which names each of its axes.
An unknown name raises here, because JAX and Flax would silently replicate it.
"""

import contextlib
import contextvars
import difflib
import math
import typing

from flax import nnx
import jax
from jax.experimental import mesh_utils
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from stmoe import errors
from stmoe import router_state as state_lib

# Logical axis -> mesh axis (or tuple of mesh axes, or None for replicated).
# Names follow T5X where T5X has them.
RULES = {
    'batch': ('data', 'expert'),
    'group': ('data', 'expert'),
    'length': None,
    'embed': None,
    'mlp': 'model',
    'heads': 'model',
    'kv': None,
    'joined_kv': 'model',
    'vocab': 'model',
    'layers': None,
    'relpos_buckets': None,
    'expert': 'expert',
    'expert_embed': None,
    'expert_mlp': 'model',
    'capacity': None,
    'unmodeled': None,
}

# Beside 'expert' in one array these axes are split as the axes of a bank are: TABLES give 'expert' mesh axes
# that are theirs elsewhere.
BESIDE_EXPERT = {'embed': 'expert_embed', 'mlp': 'expert_mlp', 'joined_kv': 'expert_mlp'}

MESH_AXES = ('data', 'expert', 'model')

# Named changes of RULES, for `rules`:
#   fsdp    parameters and the optimizer's statistics are also split over the devices that share the batch,
#           and gathered layer by layer (ZeRO-3, arXiv:1910.02054).
#   folded  experts are on another folding of the devices than attention (arXiv:2504.14960): no expert is cut
#           over `model`. Experts are dealt out over expert x model, and so are the tokens that are sent to
#           them.
TABLES: dict[str, dict[str, typing.Any]] = {
    'fsdp': {'embed': ('data', 'expert'), 'expert_embed': 'data'},
    'folded': {'group': ('data', 'expert', 'model'), 'expert': ('expert', 'model'), 'expert_mlp': None},
}

_rules = contextvars.ContextVar('rules', default=RULES)
_drawing = contextvars.ContextVar('drawing', default=True)            # False: shapes are all that is wanted


def rules(text: str) -> dict[str, typing.Any]:
  """Returns the rules of a configuration's `mesh.rules`: RULES, changed by the parts of `text` in turn.

  A part is a name of TABLES, or 'axis=mesh axes' with '+' between several and nothing for replicated.
  Raises UserError for anything unknown.

  >>> rules('folded,vocab=')['expert'], rules('folded,vocab=')['vocab'], rules('embed=data+expert')['embed']
  (('expert', 'model'), None, ('data', 'expert'))
  """
  changed: dict[str, typing.Any] = dict(RULES)
  for part in filter(None, text.split(',')):
    axis, equals, where = part.partition('=')
    if not equals and axis not in TABLES or equals and axis not in RULES:
      table, named = (RULES, 'logical axis') if equals else (TABLES, 'table')
      raise errors.UserError(f'mesh.rules={text!r}: there is no {named} {axis!r}{errors.nearest(axis, table)}'
                             f' (there are: {", ".join(table)})')
    to = tuple(filter(None, where.split('+')))
    for mesh_axis in to:
      if mesh_axis not in MESH_AXES:
        raise errors.UserError(f'mesh.rules={text!r}: there is no mesh axis {mesh_axis!r}'
                               f'{errors.nearest(mesh_axis, MESH_AXES)} (there are: {", ".join(MESH_AXES)})')
    changed |= {axis: to[0] if len(to) == 1 else to or None} if equals else TABLES[axis]
  return changed


@contextlib.contextmanager
def use(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
        changed: dict[str, typing.Any] | None = None) -> typing.Iterator:
  """Context in which `mesh` is the current mesh and `changed`, or else RULES, the current rules.

  An AbstractMesh, of devices that need not exist, is for shapes and shardings only.
  """
  token = _rules.set(RULES if changed is None else changed)
  try:
    with (jax.sharding.use_abstract_mesh(mesh) if isinstance(mesh, jax.sharding.AbstractMesh)
          else jax.set_mesh(mesh)):
      yield mesh
  finally:
    _rules.reset(token)


def check(names: typing.Iterable[str | None]) -> None:
  """Raises ValueError unless every entry of `names` is a logical axis or None."""
  for name in names:
    if name is not None and name not in RULES:
      near = difflib.get_close_matches(name, RULES, n=1)
      hint = f'; nearest: {near[0]!r}' if near else ''
      raise ValueError(f'unknown logical axis {name!r}{hint}; known: {", ".join(RULES)}')


def param(init: typing.Callable[..., jax.Array], shape: typing.Sequence[int], *names: str | None, rngs,
          dtype: jax.typing.DTypeLike = jnp.float32, label: str | None = None) -> nnx.Param:
  """Returns an `nnx.Param` of `shape` whose axes carry the logical `names`.

  Args:
    init:  initialiser `(key, shape, dtype) -> array`.
    shape: tuple of ints.
    names: a logical axis name per axis of `shape`.
    rngs:  `nnx.Rngs` with a `params` stream.
    label: what the array is called in section `groups` of a configuration, see `modules.labels`.
  Raises:
    ValueError: for an unknown name, or another number of names than axes.
  """
  check(names)
  if len(names) != len(shape):
    raise ValueError(f'{len(names)} logical axes {names} for shape {tuple(shape)}')
  value = init(_key(rngs.params), tuple(shape), dtype) if _drawing.get() else jnp.zeros(shape, dtype)
  # Sharded from birth by jit's out_shardings (see `shardings`), not eagerly.
  metadata: dict[str, typing.Any] = {} if label is None else dict(label=label)
  return nnx.Param(value, out_sharding=tuple(names), eager_sharding=False, **metadata)


def _key(stream):
  """The key `stream()`. Flax would replace the count by index: it then asks a traced one for its sharding,
  and JAX composes an error from the whole program so far."""
  count = stream.count.get_value()
  stream.count.set_value(count + 1)
  return jax.random.fold_in(stream.key.get_value(), count)


def state(value: jax.Array, *names: str | None) -> state_lib.RouterState:
  """Returns a `RouterState` of array `value` whose axes carry the logical `names`, as `param` does."""
  check(names)
  if len(names) != value.ndim:
    raise ValueError(f'{len(names)} logical axes {names} for shape {tuple(value.shape)}')
  return state_lib.RouterState(value, out_sharding=tuple(names), eager_sharding=False)


def spec(names: typing.Sequence[str | None], what: str = 'one array') -> PartitionSpec:
  """Returns the PartitionSpec, under the current rules, of an array with logical axes `names`.

  what: the array, for the message.
  Raises UserError if two axes of the array fall on the same mesh axis.
  """
  check(names)
  ruled = [BESIDE_EXPERT.get(name, name) if name and 'expert' in names else name for name in names]
  entries = tuple(None if name is None else _rules.get()[name] for name in ruled)
  used = [mesh_axis for entry in entries for mesh_axis in _mesh_axes(entry)]
  for mesh_axis in used:
    if used.count(mesh_axis) > 1:
      last = [name for name, to in zip(ruled, entries) if name and mesh_axis in _mesh_axes(to)][-1]
      rest = tuple(other for other in _mesh_axes(_rules.get()[last]) if other != mesh_axis)
      raise errors.UserError(f'mesh.rules={_text(_rules.get())!r} puts the mesh axis {mesh_axis!r} on {what} '
                             f'twice: its logical axes {tuple(ruled)} go to {entries}; nearest: '
                             f'mesh.rules={_text(_rules.get() | {last: rest})!r}')
  return PartitionSpec(*entries)


def _text(changed):
  """The rules `changed` as `rules` reads them: those that differ from RULES, each axis by itself."""
  return ','.join(f'{axis}={"+".join(_mesh_axes(to))}' for axis, to in changed.items()
                  if _mesh_axes(to) != _mesh_axes(RULES[axis]))


def over(names: typing.Sequence[str | None], what: str) -> list[tuple[str, ...]]:
  """Returns for every axis of an array with logical axes `names` the mesh axes that split it; see `spec`."""
  return [_mesh_axes(entry) for entry in spec(names, what)]


def mesh_axes(*names: str | None) -> tuple[str, ...]:
  """Returns the tuple of mesh axes over which the current rules split the logical axes `names`."""
  return tuple(mesh_axis for entry in spec(names) for mesh_axis in _mesh_axes(entry))


def _mesh_axes(entry):
  return (entry,) if isinstance(entry, str) else entry or ()


def names_of(state: typing.Any) -> dict:
  """Returns a pure dict like `state` whose leaves are the tuples of logical axes."""
  leaves = nnx.to_flat_state(state)
  tree: dict = {}
  for path, variable in leaves:
    node = tree
    for key in path[:-1]:
      node = node.setdefault(key, {})
    names = variable.get_metadata().get('out_sharding')
    node[path[-1]] = tuple(names) if names else (None,) * len(variable.shape)
  return tree


def abstract(build: typing.Callable[[], typing.Any]) -> typing.Any:
  """Returns the module that `build` makes with ShapeDtypeStructs for arrays, with or without a mesh.

  No initialiser runs: of every parameter the shape is known.
  """
  token = _drawing.set(False)
  try:
    with nnx.logical_axis_rules(tuple(RULES.items())):               # under a mesh flax translates names
      return nnx.eval_shape(build)
  finally:
    _drawing.reset(token)


def per_expert(bank: typing.Any) -> typing.Any:
  """Returns a tree like `bank`, an expert bank: whether each array belongs to experts, a bool.

  An array belongs to experts, its first axis, if its logical axes contain 'expert'. All experts share any
  other array. An array without logical axes, as in a plain dataclass, belongs to experts.
  """
  def belongs(leaf):
    names = leaf.get_metadata().get('out_sharding') if isinstance(leaf, nnx.Variable) else None
    return jax.tree.map(lambda _: not names or 'expert' in names, leaf)
  return jax.tree.map(belongs, bank, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def is_names(leaf: object) -> bool:
  """Whether `leaf` is a tuple of logical axis names (use as `is_leaf` in tree maps)."""
  return isinstance(leaf, tuple) and all(n is None or isinstance(n, str) for n in leaf)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """Returns `x` constrained to the sharding of its logical axes; `x` itself on one device.

  There the constraint would be an array of its own among those that are kept for the backward.
  """
  split = sizes()
  if math.prod(split.values()) == 1:
    return x
  entries = ([axis for axis in _mesh_axes(entry) if axis in split] for entry in spec(names))
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*(tuple(there) or None for there in entries)))


def make_mesh(data: int = 1, expert: int = 1, model: int = 1,
              devices: typing.Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
  """Returns the mesh with axes ('data', 'expert', 'model'), all of them Auto.

  `jax.make_mesh` would make Explicit axes, under which ordinary sharded
  matmuls raise. Enter the mesh with `jax.set_mesh(mesh)`; `with mesh:` does nothing.
  """
  devices = jax.devices() if devices is None else devices
  if data * expert * model != len(devices):
    raise ValueError(f'mesh {data}x{expert}x{model} = {data * expert * model} devices, but there are '
                     f'{len(devices)}')
  # Axes of a TPU's torus may be split: otherwise a 4x4x4 slice takes no axis of 2 or 32.
  placed = mesh_utils.create_device_mesh((data, expert, model), devices, allow_split_physical_axes=True)
  return jax.sharding.Mesh(placed, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def sizes() -> dict[str, int]:
  """Returns dict mesh axis -> size of the axes of MESH_AXES in the current mesh, {} without a mesh.

  A mesh of somebody else may lack some, which split nothing, and have others, which are left to the compiler.
  So are the axes of a `shard_map` around this code, whose arrays are those of one device.
  Raises UserError for Explicit axes.
  """
  mesh = jax.sharding.get_abstract_mesh()
  explicit = [axis for axis, kind in zip(mesh.axis_names, mesh.axis_types) if kind == AxisType.Explicit]
  if explicit:
    raise errors.UserError(f'axes of the current mesh are Explicit: {", ".join(explicit)}; wanted: Auto, '
                           'axis_types=(jax.sharding.AxisType.Auto,) * N of jax.make_mesh')
  return {axis: size for axis, size in mesh.shape.items()
          if axis in MESH_AXES and axis not in mesh.manual_axes}


def num_shards(*names: str | None) -> int:
  """Returns over how many devices of the current mesh the logical axes `names` are split."""
  split = sizes()
  return math.prod(split.get(axis, 1) for axis in mesh_axes(*names)) if split else 1


def rows(x: jax.Array) -> jax.Array:
  """Returns the tokens x [...,D] as rows of one matrix [N,D]; x, where devices share the length.

  The gradient of weights contracts all axes of the tokens. Of two axes XLA for CPUs makes one by turning the
  whole cotangent, which halves the speed of the product. Where devices share the length, one axis would
  gather the tokens, so the axes stay.
  """
  return x if num_shards('length') > 1 else x.reshape(-1, x.shape[-1])
