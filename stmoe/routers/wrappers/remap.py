"""Fewer experts than the router knows: several of its ids lead to one expert, after merging or pruning."""

import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.routers import wrappers


class Remap(wrappers.Wrapper):
  """The choices of `inner`, each expert replaced by the expert in a table (M-SMoE, arXiv:2310.01334).

  What `inner` did not drop is not dropped here. The state of `inner` follows the experts that it knows.

  Args:
    num_experts: E', of the layer; the experts of `inner` are the table's length.
    table:       new number in [0, E') of each expert of `inner`, or -1: its tokens go nowhere (pruned). The
      table is a state of the router, so that every layer may have its own; None = number modulo E', to be
      replaced.
    merged:      a token whose choices lead to one expert is computed once, with their weights added;
      else once for each choice.
  """

  def __init__(self, d_model: int, *, inner: ranges.Named('router'), num_experts: ranges.Count,
               table: ranges.Many(ranges.Whole(-1)) | None = None, merged: ranges.Flag = True, rngs):
    super().__init__(d_model, inner=inner, rngs=rngs)
    num_inner = self.inner.num_experts
    table = [e % num_experts for e in range(num_inner)] if table is None else list(table)
    if len(table) != num_inner or not all(-1 <= e < num_experts for e in table):
      raise UserError(f'router remap: table={tuple(table)}; wanted: {num_inner} numbers, one for each expert '
                      f'of its inner router, from 0 to {num_experts - 1}, or -1')
    self.num_experts = num_experts
    self.merged = merged
    self.table = axes.state(jnp.asarray(table, jnp.int32), 'unmodeled')

  def commit(self, aux: contract.Aux) -> None:
    """Gives the inner router the load of its own experts, aux.statistics['load_before'] f32[E]."""
    if contract.offered(self.inner, 'commit'):
      self.inner.commit(aux.replace(load=aux.statistics['load_before'].value))

  def answer(self, routed: contract.Routed) -> contract.Routed:
    """Returns `routed` with edges and load of the new experts, [G,N] and f32[E']."""
    a, aux, num_inner = routed.assignment, routed.aux, self.inner.num_experts
    if isinstance(a, assignment.SoftAssignment):
      raise UserError('router remap: its inner router mixes tokens, it lists no edges; nearest: st_moe')
    table = jnp.where(self.table[...] < 0, self.num_experts + a.num_virtual, self.table[...])
    ids = jnp.append(table, self.num_experts + jnp.arange(a.num_virtual + 1))      # virtual and dead ones
    edges = assignment.Edges(token=a.token, expert=ids[a.expert].astype(jnp.int32), weight=a.weight,
                             num_tokens=a.num_tokens, num_experts=self.num_experts,
                             num_virtual=a.num_virtual, choices=a.choices, spare=a.spare)
    edges = assignment.merge(edges) if self.merged else edges
    most = edges.num_tokens if self.merged else edges.token.shape[1]
    capped = assignment.cap(edges, min(most, num_inner * a.capacity))
    number = aux.load.shape[0]                                       # with virtual experts, where they count
    load = jnp.zeros(self.num_experts + number - num_inner).at[ids[:number]].add(aux.load, mode='drop')
    statistics = aux.statistics | dict(load_before=contract.total(aux.load))
    return routed.replace(assignment=capped, aux=aux.replace(load=load, statistics=statistics))
