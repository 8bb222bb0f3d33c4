"""Added router logits at test time: rewiring on the fly (arXiv:2510.14853), steering, knocking out experts."""

import jax.numpy as jnp

from stmoe import axes
from stmoe.errors import UserError
from stmoe.routers import wrappers


class Offset(wrappers.Deciding):
  """A router whose logits are z + delta: both the choice and the weights follow, by its own rule.

  delta is constant to the optimizer; whoever adapts it differentiates by the array that is given.

  Args:
    offset: E numbers or f32[E], f32[L,E] around stacked layers; -inf at an expert keeps all tokens from it.
      None = `ctx.given[source]`, f32[G,S,E], of tokens or rows.
    source: name among what the context is given.
  """

  needs = 'no logits to add to'

  def __init__(self, d_model, *, inner, offset=None, source='offset', rngs):
    super().__init__(d_model, inner=inner, rngs=rngs)
    self.source = source
    self.offset = None
    if offset is not None:
      offset = jnp.asarray(offset, jnp.float32)
      if offset.shape[-1:] != (self.num_experts,):
        raise UserError(f'router offset: offset has the shape {list(offset.shape)} and the router '
                        f'{self.num_experts} experts')
      self.offset = axes.state(offset, *['layers'] * (offset.ndim - 1), 'unmodeled')

  def logits(self, x, ctx):
    """Returns f32[G,S,E] for x [G,S,D]."""
    if self.offset is None and self.source not in ctx.given:
      raise UserError(f'router offset: offset=None and nothing is given as {self.source!r} (there are: '
                      f'{", ".join(ctx.given) or "none"})')
    delta = ctx.given[self.source] if self.offset is None else self.offset[...]
    return self.inner.logits(x, ctx) + delta
