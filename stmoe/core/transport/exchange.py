"""Executors on several devices: each device runs its own groups, and rows travel to the experts and back.

Letters: P devices that share the experts, E/P experts on each, M rows of a device, R rows that a
device may send to another. Names of mesh axes are the names that the current rules (`stmoe.axes`) give to
the logical axes 'group' and 'expert'.
"""

import functools
import math
import typing

from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from stmoe import axes
from stmoe import errors
from stmoe.core import assignment
from stmoe.core import contract


def on_shards(execute: typing.Callable[..., jax.Array], x: jax.Array, a: assignment.Assignment,
              experts: contract.Bank, key: jax.Array | None) -> jax.Array:
  """Returns `execute(x, a, experts, key, over)` of every device on its own groups, with its own experts.

  Mesh axes that split neither groups nor experts stay with the compiler (see `automatic`). Where nothing
  splits the groups, `execute` runs as it is, with over=().

  Args:
    execute: takes four things: the groups of one device, x [G/P',S,D] and their Assignment (of all E
      experts); the bank of its E/P experts with what all experts share; a key for each device; and `over`,
      the names of the axes that split the experts.
    x, a, experts, key: of an executor.
  Raises:
    UserError: the experts are split over an axis that does not split the groups.
  """
  if axes.num_shards('group') == 1:
    return execute(x, a, experts, key, ())
  here = axes.sizes()
  groups, over = (tuple(a for a in axes.mesh_axes(name) if a in here) for name in ('group', 'expert'))
  if not {*over} <= {*groups}:
    raise errors.UserError(f'mesh.rules split the experts over {over} and the groups over {groups}: devices '
                           'that share experts must have different tokens')

  def local(x, a, experts, key):
    device_key = None if key is None else jax.random.fold_in(key, jax.lax.axis_index(groups))
    return execute(x, a, experts, device_key, over)

  shape = jax.sharding.get_abstract_mesh().shape
  # Axes of one device are named as well, in the specs too, where they would be summed over otherwise.
  single_axes = tuple(axis for axis, size in shape.items() if size == 1 and axis not in (*groups, *over))
  split, of_expert = PartitionSpec((*groups, *single_axes)), PartitionSpec((*over, *single_axes))
  shared = lambda w: PartitionSpec(single_axes) if w.ndim else PartitionSpec()
  bank = jax.tree.map(lambda own, w: of_expert if own else shared(w), axes.per_expert(experts), experts)
  # Without check_vma the transpose sums the gradients of arrays over the axes that repeat them.
  return jax.shard_map(local, in_specs=(split, split, bank, PartitionSpec()), out_specs=split,
                       axis_names={*groups, *single_axes}, check_vma=False)(x, a, experts, key)


def automatic() -> bool:
  """Returns whether the compiler splits over devices what is computed here; kernels cannot be split.

  A bool, no array [.].
  """
  mesh = jax.sharding.get_abstract_mesh()
  return any(size > 1 and axis not in mesh.manual_axes for axis, size in mesh.shape.items())


# Of the mesh axes that split the experts, those of each exchange on a row's way to its expert.
Hops = typing.Callable[[tuple[str, ...]], tuple[tuple[str, ...], ...]]


def at_once(over: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
  """Returns the hops of one exchange over all mesh axes `over`; tuples, no array [.].

  >>> at_once(('data', 'expert')), at_once(())
  ((('data', 'expert'),), ())
  """
  return (over,) if over else ()


def axis_by_axis(over: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
  """Returns the hops of an exchange over each of the mesh axes `over`, in order; tuples, no array [.].

  >>> axis_by_axis(('data', 'expert'))
  (('data',), ('expert',))
  """
  return tuple((axis,) for axis in over)


def num_devices(over: tuple[str, ...]) -> int:
  """Returns P: the devices of the current mesh along its axes `over`; an int, no array [.]."""
  return math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in over)


@struct.dataclass
class Plan:
  """Which rows of this device go where, and which arrive; rows are sorted by expert.

  start, send: i32[P] for each device, the first row and the number of the rows that go there.
  there:       i32[P] for each device, the row of that device where the rows sent back to it begin.
  counts:      i32[P,E/P] rows that arrive from each device, by expert.
  limit:       R. over: names of the mesh axes.
  """
  start: jax.Array
  send: jax.Array
  there: jax.Array
  counts: jax.Array
  limit: int = struct.field(pytree_node=False)
  over: tuple = struct.field(pytree_node=False)


def plan(sizes: jax.Array, over: tuple[str, ...], limit: int) -> Plan:
  """Returns the Plan of a device with `sizes` i32[E] rows for each expert; two small exchanges.

  Args:
    limit: R, at least as many rows as a device can have for another.
  """
  peers = num_devices(over)
  sizes = sizes.reshape(peers, -1)                                   # [P, E/P]
  send = sizes.sum(1)
  start = jnp.cumsum(send) - send
  swap = functools.partial(jax.lax.all_to_all, axis_name=over, split_axis=0, concat_axis=0, tiled=True)
  return Plan(start=start, send=send, there=swap(start), counts=swap(sizes), limit=limit, over=over)


@jax.custom_vjp
def there(rows: jax.Array, plan: Plan) -> jax.Array:
  """Returns [P,R,D]: the rows that arrive from each device, zeros after them, of rows [M,D] sent by `plan`.

  Only the rows themselves travel where the backend has `ragged_all_to_all`. CPUs exchange R rows for every
  pair of devices. The transpose is `back`.
  """
  return _there(rows, plan)


def _there(rows, plan):
  peers, limit = plan.send.size, plan.limit

  def padded(rows, plan):
    at = plan.start[:, None] + jnp.arange(limit)                     # [P, R]
    mine = jnp.arange(limit) < plan.send[:, None]
    x = jnp.where(mine[..., None], rows[jnp.where(mine, at, 0)], 0)  # [P, R, D]
    return jax.lax.all_to_all(x, plan.over, 0, 0, tiled=True)

  def ragged(rows, plan):
    out = jnp.zeros((peers * limit, *rows.shape[1:]), rows.dtype)
    to = jnp.full(peers, jax.lax.axis_index(plan.over) * limit, jnp.int32)
    out = jax.lax.ragged_all_to_all(rows, out, plan.start, plan.send, to, plan.counts.sum(1),
                                    axis_name=plan.over)
    return out.reshape(peers, limit, *rows.shape[1:])

  return jax.lax.platform_dependent(rows, plan, cpu=padded, default=ragged)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def back(y: jax.Array, plan: Plan, num: int) -> jax.Array:
  """Returns [M,D], M = `num`: rows y [P,R,D] back in their places, zeros in rows that were not sent.

  The transpose is `there`.
  """
  return _back(y, plan, num)


def _back(y, plan, num):
  peers, limit = plan.send.size, plan.limit

  def padded(y, plan):
    y = jax.lax.all_to_all(y, plan.over, 0, 0, tiled=True)           # [P, R, D]
    row = jnp.arange(num)
    peer = jnp.sum(row[:, None] >= (plan.start + plan.send)[:-1], axis=1)          # [M]
    at = peer * limit + jnp.minimum(row - plan.start[peer], limit - 1)
    return jnp.where((row < plan.send.sum())[:, None], y.reshape(peers * limit, -1)[at], 0)

  def ragged(y, plan):
    out = jnp.zeros((num, *y.shape[2:]), y.dtype)
    at = jnp.arange(peers, dtype=jnp.int32) * limit
    return jax.lax.ragged_all_to_all(y.reshape(peers * limit, -1), out, at, plan.counts.sum(1), plan.there,
                                     plan.send, axis_name=plan.over)

  return jax.lax.platform_dependent(y, plan, cpu=padded, default=ragged)


there.defvjp(lambda rows, plan: (_there(rows, plan), (plan, rows.shape[0])),
             lambda saved, dy: (_back(dy, *saved), None))
back.defvjp(lambda y, plan, num: (_back(y, plan, num), plan),
            lambda num, plan, drows: (_there(drows, plan), None))
