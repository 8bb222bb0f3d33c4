"""The sparse layer: group -> route -> execute -> ungroup. The only caller of executors."""

import functools
import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import lookup
from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import banks
from stmoe.core import checked
from stmoe.core import contract
from stmoe.core.transport import rows
from stmoe.errors import UserError


class Moe(nnx.Module):
  """A feed-forward layer whose experts are chosen per token by a router.

  Args:
    d_model:    D.
    router:     recipe of a router; the bank gets as many experts as the router has.
    experts:    recipe of an expert bank.
    executor:   module name in `stmoe/core/execute`, with its fields (see `lookup.executor`).
    group_size: S, tokens routed together; None = one sequence. Capacity depends on S,
      so S is never adjusted: a size that does not divide the batch raises.
    virtual:    recipes of virtual experts, Z of them (`stmoe/experts/virtual`). The router chooses among
      E + Z experts; the layer itself runs the edges to virtual experts.
  """

  def __init__(self, d_model: int, *, router: ranges.Named('router'), experts: ranges.Named('experts'),
               executor: ranges.Spelled('executor') = 'gather', group_size: ranges.Count | None = None,
               virtual: ranges.Many(ranges.Called('virtual') | ranges.Named('virtual')) = (), rngs):
    self.router = checked.built(routing(router, len(virtual)), d_model, rngs)
    self.experts = banks.made(experts, d_model, num_experts=self.router.num_experts, rngs=rngs)
    self.virtual = nnx.List([make(d_model, rngs=rngs) for make in virtual])
    self.d_model = d_model
    self.group_size = group_size
    self.executor = executor
    lookup.executor(executor)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], aux, carry) for x [B,T,D]."""
    batch, length, width = x.shape
    groups, size, execute = grouping(self, ctx, batch, length)
    regroup = lambda a: a.reshape(groups, size, *a.shape[2:])
    ungroup = lambda a: a.reshape(batch, length, *a.shape[2:])
    x = axes.constrain(regroup(x), 'group', None, None)              # [G, S, D]
    with jax.named_scope('route'):
      grouped = ctx.fold('router').group(groups, size)
      routed = checked.route(self.router, x, grouped, jax.tree.map(regroup, carry))
    key = ctx.fold('experts').key if ctx.train else None
    y = execute(x, routed.assignment, self.experts, key)
    if self.virtual:
      with jax.named_scope('virtual'):
        y = with_virtual(y, x, typing.cast(assignment.Assignment, routed.assignment), self.virtual)
    y = axes.constrain(ungroup(y), 'batch', 'length', None)          # [B, T, D]
    return y, routed.aux, jax.tree.map(ungroup, routed.carry)


def routing(router: typing.Callable, num_virtual: int) -> typing.Callable:
  """Returns the recipe `router` of a router that also chooses among `num_virtual` virtual experts.

  A router that wraps another router leaves that to its `inner`.
  Raises UserError for a router without the field `num_virtual`, or with another number there.
  """
  inner = getattr(router, 'keywords', {}).get('inner')
  if inner is not None:
    return functools.partial(router, inner=routing(inner, num_virtual))
  takes = lookup.takes(router, 'num_virtual')
  wished = getattr(router, 'keywords', {}).get('num_virtual', 0)
  if wished not in (0, num_virtual):
    raise UserError(f'num_virtual={wished} of the router, but the layer has {num_virtual} virtual experts; '
                    "nearest: leave it out, the layer's field `virtual` lists them")
  if num_virtual and not takes:
    knowing = [name for name in lookup.available('router') if 'num_virtual' in lookup.fields('router', name)]
    name = getattr(router, 'func', router).__module__.rpartition('.')[2]
    raise UserError(f'router {name} knows no virtual experts, it has no field num_virtual; nearest: '
                    f'{", ".join(knowing)}')
  return functools.partial(router, num_virtual=num_virtual) if takes else router


def with_virtual(y: jax.Array, x: jax.Array, a: assignment.Assignment,
                 virtual: typing.Sequence[typing.Callable[[jax.Array], jax.Array | None]]) -> jax.Array:
  """Returns y [G,S,D] plus weight * expert(x[g,s]) of every edge of `a` to a virtual expert.

  Args:
    x:       [G,S,D].
    a:       Assignment of E + Z experts.
    virtual: the Z virtual experts, each x [G,S,D] -> [G,S,D], or None for zeros.
  """
  gates, total = rows.virtual_gates(a), y.astype(jnp.float32)        # [G, S, Z]
  for z, expert in enumerate(virtual):
    added = expert(x)
    if added is not None:
      total += gates[..., z, None] * added
  return total.astype(y.dtype)


# What runs tokens that are alone: without drops, on one device and on several.
DROPLESS = 'all_to_all_dropless'


def grouping(layer: typing.Any, ctx: contract.Context, batch: int,
             length: int) -> tuple[int, int, contract.Executor]:
  """Returns (G, S, executor) of a layer with `group_size` and `executor` for [batch, length] tokens.

  Where tokens are alone (`Context.alone`, decoding) each is a group by itself. The capacity of such a group
  is at least 1 at any factor: nothing is dropped, whatever else is computed with it. So cached decoding
  equals recomputation of the whole text with alone=True. It equals ordinary evaluation where that drops
  nothing.
  """
  if ctx.alone:
    return batch * length, 1, banks.opening(lookup.executor(DROPLESS))
  return *num_groups(batch, length, layer.group_size), banks.opening(lookup.executor(layer.executor))


def num_groups(batch: int, length: int, group_size: int) -> tuple[int, int]:
  """Returns (G, S) for a batch of `batch` sequences of `length` tokens.

  Raises UserError, naming the nearest legal sizes, if S does not divide batch * length. Raises it also if
  G is not a multiple of the devices that share the batch.
  """
  tokens, shards = batch * length, axes.num_shards('group')
  size = group_size or length
  if tokens % size or (tokens // size) % shards:
    legal = [s for s in range(1, tokens // shards + 1) if (tokens // shards) % s == 0]
    near = sorted(sorted(legal, key=lambda s: abs(s - size))[:3])
    raise UserError(f'group_size {size} does not divide the {batch} x {length} = {tokens} tokens of a '
                    f'batch into a multiple of {shards} groups; nearest: {", ".join(map(str, near))}')
  return tokens // size, size
