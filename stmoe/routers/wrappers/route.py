"""A router that is told its choice in every layer, as one route through all of them."""

import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core import contract
from stmoe.routers import wrappers

DEPTH = 'route_depth'                # in the carry: f32[B,T,1], how many such routers are below


class Route(wrappers.Deciding):
  """A router whose token goes to the expert that its route `ctx.given[source]` i32[G,S,L] has for this layer.

  The routes of a stack with L such routers are of their layers, in order; see `answer/routes.py`.

  Args:
    source: name among what the context is given.
  """

  needs = 'no choice that could be given'

  def __init__(self, d_model: int, *, inner: ranges.Named('router'), source: ranges.Text = 'route', rngs):
    super().__init__(d_model, inner=inner, rngs=rngs)
    self.source = source

  def init_carry(self, x: jax.Array) -> dict[str, jax.Array]:
    """Returns 0 for all tokens of x [B,T,D], f32[B,T,1]."""
    return {DEPTH: jnp.zeros((*x.shape[:2], 1))}

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]."""
    whole = ctx.known(self.source, 'router route')                   # [G, S, L]
    depth = carry.get(DEPTH, jnp.zeros((*whole.shape[:2], 1)))       # by itself a router is the first layer's
    chosen = jnp.take_along_axis(whole, depth.astype(jnp.int32), axis=-1)
    after = carry | ({DEPTH: depth + 1} if DEPTH in carry else {})
    return self.inner.decide(logits, ctx, after, lambda scores, k: chosen)
