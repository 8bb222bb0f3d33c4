"""The sparse layer: group -> route -> execute -> ungroup. The only caller of executors."""

import functools
import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import errors
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
    whole_batch: all tokens of a batch are routed together, whatever their number. Devices that share the
      batch route their own tokens (fairseq; NLLB, arXiv:2207.04672).
    output_masking: share of the tokens that in training get nothing from their experts, drawn per token;
      evaluation multiplies what they get by 1 - the share.
    virtual:    recipes of virtual experts, Z of them (`stmoe/experts/virtual`). The router chooses among
      E + Z experts; the layer itself runs the edges to virtual experts.
  """

  def __init__(self, d_model: int, *, router: ranges.Named('router'), experts: ranges.Named('experts'),
               executor: ranges.Spelled('executor') = 'gather', group_size: ranges.Count | None = None,
               whole_batch: ranges.Flag = False, output_masking: ranges.Below1 = 0.0,
               virtual: ranges.Many(ranges.Called('virtual') | ranges.Named('virtual')) = (), rngs):
    if whole_batch and group_size is not None:
      raise UserError(f'layer moe: group_size={group_size} and whole_batch=True are two sizes of a group; '
                      'nearest: group_size=None')
    self.router = checked.built(routing(router, len(virtual)), d_model, rngs)
    self.experts = banks.made(experts, d_model, num_experts=self.router.num_experts, rngs=rngs)
    self.virtual = nnx.List([checked.made(make, d_model, rngs=rngs) for make in virtual])
    self.d_model = d_model
    self.group_size = group_size
    self.whole_batch = whole_batch
    self.output_masking = output_masking
    self.executor = executor
    lookup.executor(executor)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], aux, carry) for x [B,T,D]."""
    return self.chosen_by(x, x, ctx, carry)

  def chosen_by(self, read: jax.Array, x: jax.Array, ctx: contract.Context,
                carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], aux, carry): experts of x [B,T,D], which the router chooses by `read` [B,T,D]."""
    groups = grouped(self, read, ctx, carry)
    routed, x = groups.route(self.router), groups.of(x)              # [G, S, D]
    y = groups.execute(x, routed.assignment, self.experts, groups.key('experts'))
    if self.virtual:
      with jax.named_scope('virtual'):
        y = with_virtual(y, x, typing.cast(assignment.Assignment, routed.assignment), self.virtual)
    return groups.answer(self._masked(y, groups), routed)

  def _masked(self, y, groups):
    """The experts' outputs y [G,S,D] after `output_masking`."""
    share = self.output_masking
    if not share:
      return y
    key = groups.key('masking')
    if key is None:
      return y * (1 - share)
    kept = jax.random.bernoulli(key, 1 - share, y.shape[:2])         # [G, S]
    return jnp.where(kept[..., None], y, 0)


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
    added = checked.alike(expert, x)
    if added is not None:
      total += gates[..., z, None] * added
  return total.astype(y.dtype)


class Grouped(typing.NamedTuple):
  """The tokens of a layer in the groups in which they are routed, made by `grouped`.

  x:       [G,S,D]; carry: arrays [G,S,.] by name.
  ctx:     of the groups.
  execute: the executor.
  batch, length: B and T.
  """
  x: jax.Array
  ctx: contract.Context
  carry: contract.Carry
  execute: contract.Executor
  batch: int
  length: int

  def route(self, router: contract.Router, name: str = 'router') -> contract.Routed:
    """Returns the Routed of `router`, whose randomness is that of `name`."""
    with jax.named_scope('route'):
      return checked.route(router, self.x, self.ctx.fold(name), self.carry)

  def of(self, x: jax.Array) -> jax.Array:
    """Returns [G,S,D'] of x [B,T,D'], other numbers of the same tokens."""
    return axes.constrain(x.reshape(*self.x.shape[:2], *x.shape[2:]), 'group', None, None)

  def key(self, name: str) -> jax.Array | None:
    """Returns the key of `name`, such as dropout in experts; None outside of training."""
    return self.ctx.fold(name).key if self.ctx.train else None

  def tokens(self, y: jax.Array) -> jax.Array:
    """Returns [B,T,D'] of y [G,S,D']."""
    return axes.constrain(self._ungrouped(y), 'batch', 'length', None)

  def answer(self, y: jax.Array, routed: contract.Routed) -> contract.Answer:
    """Returns (y [B,T,D'], aux, carry) of y [G,S,D'] and what the router answered."""
    return self.tokens(y), routed.aux, jax.tree.map(self._ungrouped, routed.carry)

  def _ungrouped(self, a):
    return a.reshape(self.batch, self.length, *a.shape[2:])


def grouped(layer: typing.Any, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> Grouped:
  """Returns the tokens x [B,T,D] and carry [B,T,.] of a layer with `group_size` and `executor` in groups."""
  groups, size, execute = grouping(layer, ctx, *x.shape[:2])
  regroup = lambda a: a.reshape(groups, size, *a.shape[2:])
  return Grouped(axes.constrain(regroup(x), 'group', None, None), ctx.group(groups, size),
                 jax.tree.map(regroup, carry), execute, *x.shape[:2])


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
  size = layer.group_size
  if contract.offered(layer, 'whole_batch'):
    size = batch * length // axes.num_shards('group')
  return *num_groups(batch, length, size), banks.opening(lookup.executor(layer.executor))


def num_groups(batch: int, length: int, group_size: int) -> tuple[int, int]:
  """Returns (G, S) for a batch of `batch` sequences of `length` tokens.

  Raises UserError, naming the nearest legal sizes, if S does not divide batch * length. Raises it also if
  G is not a multiple of the devices that share the batch.
  """
  tokens, shards = batch * length, axes.num_shards('group')
  size = group_size or length
  if tokens % size or (tokens // size) % shards:
    near = errors.around(size, errors.divisors(tokens // shards))
    raise UserError(f'group_size {size} does not divide the {batch} x {length} = {tokens} tokens of a '
                    f'batch into a multiple of {shards} groups; nearest: {near}')
  return tokens // size, size
