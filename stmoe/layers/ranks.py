"""Routing by rank: each token to its experts of certain places in the router's order, not to the first ones.

The weak routing of self-contrast decoding (SCMoE, arXiv:2405.14507): rank 2 alone is the third expert.
"""

import copy

import jax.numpy as jnp

from stmoe.core import assignment
from stmoe.errors import UserError


def of(router, ranks):
  """Returns `router`, or with `ranks`, a tuple, what routes to them: called like the router.

  A router that can be ranked orders its k choices (`Assignment.choices`), and says so by an attribute
  `ranked`: a dict of the fields that it has for this besides k, so that every choice is made. Gates that are
  normalised over the chosen experts (`normalize_gates`, k > 1) are so over those of `ranks` alone, as in
  Mixtral: a single one has the weight of all. Others keep their own weight, as in DeepSeekMoE.
  Raises UserError for a router without an order, or ranks it does not have.
  """
  if ranks is None:
    return router
  name, changed = type(router).__module__.rpartition('.')[2], getattr(router, 'ranked', None)
  if changed is None:
    raise UserError(f'router {name} has no ranks of experts to route by; nearest: '
                    "router name='st_moe' (or decode.name='greedy')")
  reached = router.num_experts * getattr(router, 'kept_groups', 1) // getattr(router, 'num_groups', 1)
  wrong = [r for r in ranks if not 0 <= r < reached]
  if wrong or not ranks or len(set(ranks)) < len(ranks):
    raise UserError(f'decode.routing_ranks={tuple(ranks)}: ranks are different numbers from 0 to '
                    f'{reached - 1}, and at least one')
  normalized = getattr(router, 'normalize_gates', False) and router.k > 1
  whole = copy.copy(router)
  # Not by assignment: flax refuses that to a module made outside of the loop that is being traced.
  vars(whole).update(changed, k=max(max(ranks) + 1, router.k), normalize_gates=normalized)

  def route(x, ctx, carry):
    routed = whole(x, ctx, carry)
    return routed.replace(assignment=only(routed.assignment, ranks, normalized))
  return route


def only(a, ranks, normalized):
  """Returns Assignment `a`, choice-major, with the edges of other choices than `ranks` dead.

  Args:
    normalized: give a token's remaining edges the weight that all had together.
  """
  kept = jnp.repeat(jnp.isin(jnp.arange(a.choices), jnp.array(ranks)), a.num_tokens)     # [k*S]
  weight = a.weight
  if normalized:
    total = lambda w: w.reshape(len(w), a.choices, -1).sum(axis=1)   # [G, S]
    rest = total(jnp.where(kept, weight, 0))
    scale = jnp.where(rest > 0, total(weight) / jnp.where(rest > 0, rest, 1), 1)
    weight = weight * jnp.tile(scale, a.choices)
  dead = assignment.kill(a, jnp.broadcast_to(kept, a.expert.shape)).replace(weight=weight)
  return dead.replace(slot=jnp.where(kept, a.slot, a.capacity))
