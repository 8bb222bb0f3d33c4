"""Choices among some of the experts, with the weights that the router gives among all."""

import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.routers import wrappers


class Among(wrappers.Deciding):
  """A router that chooses the best of the experts that stay, as if they were all.

  The weight of a choice is what `inner` gives it among all experts: the weights of experts that do not stay
  are lost (Z-code M3's pruning with old gates, arXiv:2109.10465). Where `inner` divides by the sum of a
  token's weights, nothing is lost. A token keeps all its choices: no policy of `inner` leaves one out
  (`second_policy` of ST-MoE), and nothing is drawn. Losses and load are those of `inner` with these choices.

  Args:
    stay: 1 for every expert that stays, 0 for others. A state of the router, so that every layer may have
      its own; None = all stay, to be replaced.
  """

  needs = 'no choices that could be given'

  def __init__(self, d_model: int, *, inner: ranges.Named('router'),
               stay: ranges.Many(ranges.Whole(0, 1)) | None = None, rngs):
    super().__init__(d_model, inner=inner, rngs=rngs)
    stay = [1] * self.inner.num_experts if stay is None else list(stay)
    k = contract.offered(self.inner, 'k') or 1
    if len(stay) != self.inner.num_experts or sum(stay) < k:
      raise UserError(f'router among: stay={tuple(stay)}; wanted: {self.inner.num_experts} numbers, 1 for at '
                      f'least {k}')
    self.stay = axes.state(jnp.asarray(stay, jnp.int32), 'unmodeled')

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]."""
    def among(scores, k):
      others = jnp.ones(scores.shape[-1] - self.stay[...].size, jnp.int32)     # virtual experts
      left = jnp.where(jnp.append(self.stay[...], others) > 0, scores, -jnp.inf)
      return jax.lax.top_k(left, k)[1] if choose is None else choose(left, k)
    return self.inner.decide(logits, ctx, carry, among)
