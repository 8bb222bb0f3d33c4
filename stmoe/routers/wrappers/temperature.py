"""Router logits divided by a temperature at test time: how much does the sharpness of a router matter?"""

import jax

from stmoe import ranges
from stmoe.core import contract
from stmoe.routers import wrappers


class Temperature(wrappers.Deciding):
  """A router whose logits are z / temperature: above 1 its weights are flatter, below 1 sharper.

  The order of a token's experts stays, unless the router adds something to its logits before it chooses.
  """

  needs = 'no logits to divide'

  def __init__(self, d_model: int, *, inner: ranges.Named('router'),
               temperature: ranges.Positive = 1.0, rngs):
    super().__init__(d_model, inner=inner, rngs=rngs)
    self.temperature = temperature

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,E] for x [G,S,D]."""
    return self.inner.logits(x, ctx) / self.temperature
