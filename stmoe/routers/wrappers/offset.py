"""Added router logits at test time: rewiring (arXiv:2510.14853), steering, knocking experts out."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.routers import wrappers


class Offset(wrappers.Deciding):
  """A router whose logits are z + delta: the choice and the weights both follow, by the rule of `inner`.

  delta is constant to the optimizer. To adapt delta, differentiate by the array that is given.

  Args:
    offset: E numbers or f32[E], of every layer, f32[L,E] around stacked layers; -inf at an expert keeps all
      tokens from it. None = `ctx.given[source]`, f32[G,S,E], of tokens or rows.
    source: the name of delta among what the context is given.
  """

  needs = 'no logits to add to'

  def __init__(self, d_model: int, *, inner: ranges.Named('router'),
               offset: ranges.Many(ranges.Any) | None = None, source: ranges.Text = 'offset', rngs):
    super().__init__(d_model, inner=inner, rngs=rngs)
    self.source = source
    self.offset = None if offset is None else _constant(_stacked(offset, self.inner))

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,E] for x [G,S,D]."""
    delta = ctx.known(self.source, 'router offset') if self.offset is None else self.offset[...]
    logits = self.inner.logits(x, ctx)
    if delta.shape[-1] != logits.shape[-1]:
      raise UserError(f'router offset: {delta.shape[-1]} numbers for logits of {logits.shape[-1]} experts')
    return logits + delta


def _stacked(offset, inner):
  """f32[E]; f32[L,E] around layers whose arrays are stacked. E numbers are then those of every layer."""
  offset = jnp.asarray(offset, jnp.float32)
  layers = {value.shape[0] for _, value in nnx.to_flat_state(nnx.state(inner))
            if (value.get_metadata().get('out_sharding') or ('',))[0] == 'layers'}
  if offset.ndim == 1 and layers:
    offset = jnp.broadcast_to(offset, (max(layers), *offset.shape))
  if offset.ndim == 2 and layers != {offset.shape[0]}:
    raise UserError(f'router offset: {offset.shape[0]} rows for {max(layers, default=1)} layers')
  return offset


def _constant(offset):
  """RouterState of f32[E], or f32[L,E] of stacked layers."""
  return axes.state(offset, *['layers'] * (offset.ndim - 1), 'unmodeled')
