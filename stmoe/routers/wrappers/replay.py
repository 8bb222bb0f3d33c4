"""Routing replay: a token's experts are given, their weights are the router's own (arXiv:2510.11370)."""

import jax

from stmoe import ranges
from stmoe.core import contract
from stmoe.routers import wrappers


class Replay(wrappers.Deciding):
  """A router that is told its choices, `ctx.given[source]` i32[G,S,n], as another pass recorded them.

  `inner` weights these experts by its present logits. The gradient goes through the
  weights, none through the choice. All choices are kept; with a capacity, drops may differ from the recorded
  drops. Losses and load count the given choices.

  Args:
    source: name among what the context is given.
  """

  needs = 'no choices that could be given'

  def __init__(self, d_model: int, *, inner: ranges.Named('router'), source: ranges.Text = 'choices', rngs):
    super().__init__(d_model, inner=inner, rngs=rngs)
    self.source = source

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]."""
    chosen = ctx.known(self.source, 'router replay')
    return self.inner.decide(logits, ctx, carry, lambda scores, k: chosen)
