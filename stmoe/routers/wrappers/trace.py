"""A router that also records what it decided, for analysis."""

import jax

from stmoe.core import assignment
from stmoe.core import contract
from stmoe.routers import wrappers


class Trace(wrappers.Wrapper):
  """The router `inner`, whose edges come back as `Aux.records['edges']`: token, expert, weight, [G,N] each.

  Where `contract.TOKEN_NUMBER` is given of the tokens, it comes back beside the edges, as number i32[G,S]. A
  mixture of all tokens (Soft MoE) has no edges, and records none.
  """

  def answer(self, routed: contract.Routed) -> contract.Routed:
    """Returns `routed` with its record."""
    a = routed.assignment
    if not isinstance(a, assignment.Edges):
      return routed
    return _recorded(routed, dict(token=a.token, expert=a.expert, weight=a.weight))

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    routed = super().__call__(x, ctx, carry)
    edges, number = routed.aux.records.get('edges'), ctx.given.get(contract.TOKEN_NUMBER)
    if edges is None or number is None or number.shape != x.shape[:2]:
      return routed
    return _recorded(routed, edges | dict(number=number))


def _recorded(routed, edges):
  return routed.replace(aux=routed.aux.recorded(edges=edges))
