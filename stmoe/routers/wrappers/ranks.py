"""Routing by rank: each token goes to experts of certain places in the router's order, not to the first.

The weak routing of self-contrast decoding (SCMoE, arXiv:2405.14507): rank 2 alone is the third expert.
"""

import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import choices
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.routers import wrappers


class Ranks(wrappers.Deciding):
  """A router whose tokens go to the experts at `ranks` of its order, 0 the first choice; none is left out.

  Gates that `inner` divides by their sum are divided by the sum of `ranks` alone, as in Mixtral: a single
  gate is 1. Gates of other routers keep their own weight, as in DeepSeekMoE.

  Args:
    ranks: different numbers from 0 on.
  """

  needs = 'no ranks of experts to route by'

  def __init__(self, d_model: int, *, inner: ranges.Named('router'), ranks: ranges.Many(ranges.Natural, 1),
               rngs):
    super().__init__(d_model, inner=inner, rngs=rngs)
    reached = self.inner.num_experts if self.reach is None else self.reach
    self.ranks = tuple(ranks)
    if not self.ranks or len(set(self.ranks)) < len(self.ranks) or not 0 <= min(self.ranks) <= max(
        self.ranks) < reached:
      raise UserError(f'ranks={self.ranks}: ranks are different numbers from 0 to {reached - 1}, and at '
                      'least one')

  @property
  def _normalized(self):
    return bool(self.normalize_gates) and self.k != 1

  @property
  def gates_sum(self) -> float | None:
    """What the gates of a token add up to, see `contract.OFFERS`."""
    return contract.offered(self.inner, 'gates_sum') if self._normalized else None

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]."""
    first, number = choose or choices.top, max(max(self.ranks) + 1, self.k or 1)
    routed = self.inner.decide(logits, ctx, carry, lambda scores, k: first(scores, number))
    return routed.replace(assignment=only(routed.assignment, self.ranks, self._normalized))


def only(a: assignment.Assignment, ranks: tuple[int, ...], normalized: bool) -> assignment.Assignment:
  """Returns Assignment `a` [G,k*S], choice-major, with the edges of other choices than `ranks` dead.

  Args:
    normalized: give a token's remaining edges the weight that all had together. This is not left to the
      router: beside the 1e-9 that the router adds to a sum, a gate of rank 7 may be nothing.
  """
  kept = jnp.repeat(jnp.isin(jnp.arange(a.choices), jnp.array(ranks)), a.num_tokens)     # [k*S]
  weight = a.weight
  if normalized:
    total = lambda w: w.reshape(len(w), a.choices, -1).sum(axis=1)   # [G, S]
    remaining = total(jnp.where(kept, weight, 0))
    scale = jnp.where(remaining > 0, total(weight) / jnp.where(remaining > 0, remaining, 1), 1)
    weight = weight * jnp.tile(scale, a.choices)
  edges = assignment.kill(a, jnp.broadcast_to(kept, a.expert.shape)).replace(weight=weight)
  return assignment.cap(edges, a.capacity)                           # their slots have no holes
