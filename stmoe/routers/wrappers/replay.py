"""Routing replay: a token's experts are given, their weights are the router's own (arXiv:2510.11370)."""

import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core import checked
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.routers import wrappers

PLACE = 'routers_before'                 # in the carry: i32[B,T,1]


class Placed(wrappers.Deciding):
  """A router that knows how many of its kind its stack has called before: its memory across layers, PLACE."""

  needs = 'no choices that could be given'

  def init_carry(self, x: jax.Array) -> dict[str, jax.Array]:
    """Returns {PLACE: 0} for x [B,T,D]."""
    return {PLACE: jnp.zeros((*x.shape[:2], 1), jnp.int32)}

  def place(self, carry: contract.Carry) -> jax.Array:
    """Returns i32[G,S,1]; raises UserError in a layer that hands on no memory."""
    if PLACE not in carry:
      raise UserError(f'{checked.file(self.inner)}: its layer hands it no memory across layers, so that its '
                      "routing is neither recorded nor replayed; nearest: layer='moe'")
    return carry[PLACE]


class Replay(Placed):
  """A router that is told its choices, `ctx.given[source]`, as another pass recorded them.

  They are i32[G,S,n], or i32[G,S,L,n] of the L routers of a stack in the order in which these are called.
  There a negative number is no expert: a choice that the recording pass dropped.

  `inner` weights these experts by its present logits. The gradient goes through the
  weights, none through the choice. All choices are kept; with a capacity, drops may differ from the recorded
  drops. Losses and load count the given choices.

  Args:
    source: name among what the context is given.
  """

  def __init__(self, d_model: int, *, inner: ranges.Named('router'), source: ranges.Text = 'choices', rngs):
    super().__init__(d_model, inner=inner, rngs=rngs)
    self.source = source

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]."""
    chosen = ctx.known(self.source, 'router replay')
    if chosen.ndim == 3:
      return self.inner.decide(logits, ctx, carry, lambda scores, k: chosen)
    place = self.place(carry)                                        # [G, S, 1]
    own = jnp.take_along_axis(chosen, place[..., None], axis=2)[:, :, 0]           # [G, S, n]
    dead = lambda scores, k: jnp.where(own < 0, scores.shape[-1], own)
    routed = self.inner.decide(logits, ctx, carry, dead)
    return routed.replace(carry=routed.carry | {PLACE: place + 1})
