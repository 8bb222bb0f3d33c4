"""A router that also records what it decided, for analysis."""

from stmoe.core import assignment
from stmoe.core import contract
from stmoe.routers import wrappers


class Trace(wrappers.Wrapper):
  """The router `inner`, whose edges come back as `Aux.records['edges']`: token, expert, weight, [G,N] each.

  A mixture of all tokens (Soft MoE) has no edges, and records none.
  """

  def answer(self, routed: contract.Routed) -> contract.Routed:
    """Returns `routed` with its record."""
    a = routed.assignment
    if not isinstance(a, assignment.Edges):
      return routed
    edges = dict(token=a.token, expert=a.expert, weight=a.weight)
    return routed.replace(aux=routed.aux.replace(records=routed.aux.records | dict(edges=edges)))
