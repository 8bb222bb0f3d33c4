"""Tokens exchanged between routing groups before a sparse layer, and put back after it (BASE layers)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe.errors import UserError
from stmoe.layers import moe


class Shuffled(nnx.Module):
  """In training, `inner` with the tokens of its routing groups mixed (arXiv:2103.16716, section 3.2).

  Tokens of one sequence are alike and want the same experts, of which a group has only so many
  places. Every group is permuted at random and deals its tokens out to all groups in equal parts;
  what `inner` returns goes back the same way. Everything a layer may know of a token moves with it.
  Without a key, and in evaluation, nothing moves.

  Args:
    d_model: D.
    inner:   recipe of the layer; what it routes in a group is what is shuffled.
  Differs: the groups are those of one microbatch, whatever number of devices holds them.
  """

  def __init__(self, d_model, *, inner, rngs):
    self.inner = inner(d_model, rngs=rngs)
    sparse = self.inner
    while hasattr(sparse, 'inner'):
      sparse = sparse.inner
    if not hasattr(sparse, 'router'):
      raise UserError('layer shuffled: its inner layer routes nothing; nearest: inner.name=moe')
    self.group_size = sparse.group_size

  def init_carry(self, x):
    """Returns the memory across layers of `inner`."""
    return self.inner.init_carry(x) if hasattr(self.inner, 'init_carry') else {}

  def commit(self, aux):
    """Lets `inner` update its state across steps."""
    self.inner.commit(aux)

  def __call__(self, x, ctx, carry):
    """Returns (y [B,T,D], aux, carry) for x [B,T,D]."""
    if not ctx.train or ctx.key is None:
      return self.inner(x, ctx, carry)
    batch, length, _ = x.shape
    groups, size = moe.num_groups(batch, length, self.group_size)
    if size % groups:
      raise UserError(f'layer shuffled: each of the {groups} routing groups deals out its {size} tokens to '
                      f'all {groups}, which must divide them; change group_size or the batch')
    order = deal(jax.vmap(lambda key: jax.random.permutation(key, size))(
        jax.random.split(ctx.fold('shuffle').key, groups)))          # [B*T]
    move = lambda a: _take(a, order)
    y, aux, carry = self.inner(move(x), _moved(ctx, move), jax.tree.map(move, carry))
    back = jnp.argsort(order)
    return _take(y, back), aux, jax.tree.map(lambda a: _take(a, back), carry)


def deal(permutations):
  """Returns i32[G*S]: which token comes where, when groups deal out permuted tokens to each other.

  Group g sends part b of its permuted tokens to group b, which lines up what it gets by sender.

  Args:
    permutations: i32[G,S], of each group; G divides S.

  >>> deal(jnp.array([[1, 0], [0, 1]])).tolist()                     # group 0 gets tokens 1 and 2
  [1, 2, 0, 3]
  """
  groups, size = permutations.shape
  token = permutations + size * jnp.arange(groups)[:, None]          # [G, S]
  return token.reshape(groups, groups, size // groups).swapaxes(0, 1).reshape(-1)


def _take(a, order):
  """a [B,T,...] with its B*T entries in `order`."""
  flat = a.reshape(-1, *a.shape[2:])
  return flat.at[order].get(unique_indices=True, mode='promise_in_bounds').reshape(a.shape)


def _moved(ctx, move):
  """`ctx` with its [B,T] arrays moved."""
  return ctx.replace(mask=move(ctx.mask), ids=move(ctx.ids), positions=move(ctx.positions),
                     segments=move(ctx.segments))
