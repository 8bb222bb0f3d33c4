"""The sparse layer: group -> route -> execute -> ungroup. The only caller of executors."""

from flax import nnx
import jax

from stmoe import axes
from stmoe import lookup
from stmoe.core import checked
from stmoe.errors import UserError


class Moe(nnx.Module):
  """A feed-forward layer whose experts are chosen per token by a router.

  Args:
    d_model:    D.
    router:     recipe of a router; the bank gets as many experts as it has.
    experts:    recipe of an expert bank.
    executor:   module name in `stmoe/core/execute`, with its fields (see `lookup.executor`).
    group_size: S, tokens routed together; None = one sequence. Capacity depends on it,
      so it is never adjusted: a size that does not divide the batch raises.
  """

  def __init__(self, d_model, *, router, experts, executor='gather', group_size=None, rngs):
    self.router = checked.built(router, d_model, rngs)
    self.experts = experts(d_model, num_experts=self.router.num_experts, rngs=rngs)
    self.d_model = d_model
    self.group_size = group_size
    self.executor = executor
    lookup.executor(executor)

  def __call__(self, x, ctx, carry):
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
    y = axes.constrain(ungroup(y), 'batch', 'length', None)          # [B, T, D]
    return y, routed.aux, jax.tree.map(ungroup, routed.carry)


# What runs tokens that are alone: without drops, on one device and on several.
DROPLESS = 'all_to_all_dropless'


def grouping(layer, ctx, batch, length):
  """Returns (G, S, executor) of a layer with `group_size` and `executor` for [batch, length] tokens.

  Where tokens are alone (`Context.alone`, decoding) each is a group of one, whose capacity is at least 1 at
  any factor: nothing is dropped, whatever else is computed with it. Cached decoding so equals
  recomputation of the whole text with alone=True, and equals ordinary evaluation where that drops nothing.
  """
  if ctx.alone:
    return batch * length, 1, lookup.executor(DROPLESS)
  return *num_groups(batch, length, layer.group_size), lookup.executor(layer.executor)


def num_groups(batch, length, group_size):
  """Returns (G, S) for a batch of `batch` sequences of `length` tokens.

  Raises UserError, naming the nearest legal sizes, if S does not divide batch * length
  or G is not a multiple of the devices that share the batch.
  """
  tokens, shards = batch * length, axes.num_shards('group')
  size = group_size or length
  if tokens % size or (tokens // size) % shards:
    legal = [s for s in range(1, tokens // shards + 1) if (tokens // shards) % s == 0]
    near = sorted(sorted(legal, key=lambda s: abs(s - size))[:3])
    raise UserError(f'group_size {size} does not divide the {batch} x {length} = {tokens} tokens of a '
                    f'batch into a multiple of {shards} groups; nearest: {", ".join(map(str, near))}')
  return tokens // size, size
