"""Tokens exchanged between routing groups before a sparse layer, and put back after it (BASE layers)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import modules
from stmoe import ranges
from stmoe.core import checked
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.layers import moe


class Shuffled(nnx.Module):
  """In training, `inner` with the tokens of its routing groups mixed (arXiv:2103.16716, section 3.2).

  Why: tokens of one sequence are alike and want the same experts, whose places in a group are limited.
  Every group is permuted at random and deals its tokens out to all groups in equal parts. What `inner`
  returns goes back the same way. Everything a layer may know of a token moves with the token.
  Without a key, and in evaluation, nothing moves.

  Args:
    d_model: D.
    inner:   recipe of the layer; what it routes in a group is what is shuffled.
  Differs: a group lies in one microbatch, whatever number of devices holds them.
  """

  def __init__(self, d_model: int, *, inner: ranges.Named('layer'), rngs):
    self.inner = inner(d_model, rngs=rngs)
    sizes = {sparse.group_size for sparse in modules.sparse(self.inner)}
    if len(sizes) != 1:
      problem = f'routes in groups of {len(sizes)} sizes' if sizes else 'routes nothing'
      raise UserError(f'layer shuffled: its inner layer {problem}; nearest: inner.name=moe')
    self.group_size, = sizes

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], aux, carry) for x [B,T,D]."""
    key = ctx.fold('shuffle').key if ctx.train else None
    if key is None:
      return checked.answer(self.inner, x, ctx, carry)
    batch, length, _ = x.shape
    groups, size = moe.num_groups(batch, length, self.group_size)
    if size % groups:
      raise UserError(f'layer shuffled: each of the {groups} routing groups deals out its {size} tokens to '
                      f'all {groups}, which must divide them; change group_size or the batch')
    order = jax.vmap(lambda key: jax.random.permutation(key, size))(jax.random.split(key, groups))   # [G, S]
    back = jnp.argsort(order, axis=1)
    regroup = lambda a: axes.constrain(a.reshape(groups, size, *a.shape[2:]), 'group', *[None] * (a.ndim - 1))
    move = lambda a: deal(permute(regroup(a), order, back)).reshape(a.shape)
    unmove = lambda a: permute(deal(regroup(a)), back, order).reshape(a.shape)
    y, aux, carry = checked.answer(self.inner, move(x), ctx.each(move), jax.tree.map(move, carry))
    return unmove(y), aux, jax.tree.map(unmove, carry)


def deal(x: jax.Array) -> jax.Array:
  """Returns [G,S,...]: every group gives each group an equal part of its tokens x [G,S,...], in order.

  Group g sends its part b to group b, which lines up the parts it gets by sender. Dealt twice, all is as it
  was. On several devices this is an all-to-all.

  >>> deal(jnp.array([[1, 0], [2, 3]])).tolist()
  [[1, 2], [0, 3]]
  """
  groups, size, *rest = x.shape
  parts = x.reshape(groups, groups, size // groups, *rest).swapaxes(0, 1)          # [G, G, S/G, ...]
  return axes.constrain(parts, 'group', *[None] * (parts.ndim - 1)).reshape(x.shape)


@jax.custom_vjp
def permute(x: jax.Array, order: jax.Array, back: jax.Array) -> jax.Array:
  """Returns x [G,S,...] with the tokens of each group in its `order` i32[G,S]; `back` is the inverse.

  The transpose is a gather, too.
  """
  return jax.vmap(lambda x, at: x.at[at].get(unique_indices=True, mode='promise_in_bounds'))(x, order)


permute.defvjp(lambda x, order, back: (permute(x, order, back), (order, back)),
               lambda saved, dy: (permute(dy, saved[1], saved[0]), None, None))
