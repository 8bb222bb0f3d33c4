"""A router that also records how sure it is of each token's experts."""

import jax
import jax.numpy as jnp

from stmoe.core import contract
from stmoe.routers import wrappers


class Confidence(wrappers.Deciding):
  """The router `inner`, which also records its confidence as `Aux.records['confidence']`, f32[G,S].

  The confidence is the sum of the k largest probabilities, softmax of the logits; k is that of `inner`.
  """

  needs = 'no logits to be sure by'

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]."""
    routed = self.inner.decide(logits, ctx, carry, choose)
    sure = jax.lax.top_k(jax.nn.softmax(logits), self.k or 1)[0].sum(axis=-1)      # [G, S]
    records = routed.aux.records | dict(confidence=jnp.where(ctx.mask, sure, 0))
    return routed.replace(aux=routed.aux.replace(records=records))
