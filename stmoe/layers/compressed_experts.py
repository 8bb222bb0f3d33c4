"""Compressed experts: of a token's experts the strongest are computed, each other one is a vector."""

import functools
import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.layers import moe
from stmoe.routers import wrappers

RECORD = 'auxiliary'                     # of the router's Aux, for this layer alone


class CompressedExperts(moe.Moe):
  """(sum_main g_i FFN_i(x)) * (sum_aux g'_j c_j), elementwise (arXiv:2503.00634; our reading, u).

  A token's `main` experts of largest gate are computed. The other experts of the token are auxiliary: each
  has a vector c [E,D], at first ones. g' are their gates, divided by their sum. Where a token has no
  auxiliary expert, the factor is 1. So at first the layer is the sparse layer whose other choices are left
  out.
  Vectors have the label `compressed`: groups of the configuration may train them alone.

  Args:
    main:  how many experts of a token are computed.
    router, experts, executor, group_size, whole_batch, output_masking, virtual: see `moe.Moe`. Auxiliary
      virtual experts are left out.
  """

  def __init__(self, d_model: int, *, router: ranges.Named('router'), experts: ranges.Named('experts'),
               main: ranges.Count, executor: ranges.Spelled('executor') = 'gather',
               group_size: ranges.Count | None = None, whole_batch: ranges.Flag = False,
               output_masking: ranges.Below1 = 0.0,
               virtual: ranges.Many(ranges.Called('virtual') | ranges.Named('virtual')) = (), rngs):
    super().__init__(d_model, router=functools.partial(Main, inner=router, main=main), experts=experts,
                     executor=executor, group_size=group_size, whole_batch=whole_batch,
                     output_masking=output_masking, virtual=virtual, rngs=rngs)
    shape = self.router.num_experts, d_model
    self.compressed = axes.param(nnx.initializers.ones, shape, 'expert', 'expert_embed', label='compressed',
                                 rngs=rngs)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], aux, carry) for x [B,T,D]."""
    y, reported, carry = super().__call__(x, ctx, carry)
    aux = typing.cast(contract.Aux, reported)
    gates = aux.records[RECORD].reshape(*x.shape[:2], -1)            # [B, T, E]
    vector = jnp.einsum('bte,ed->btd', gates, self.compressed[...])
    factor = jnp.where(gates.sum(-1, keepdims=True) > 0, vector, 1)
    return y * factor.astype(y.dtype), aux.without(RECORD), carry


class Main(wrappers.Wrapper):
  """The `main` choices of `inner` with the largest gates; the others' gates [G,S,E] are a record of Aux."""

  def __init__(self, d_model: int, *, inner, main: int, rngs):
    super().__init__(d_model, inner=inner, rngs=rngs)
    self.main = main

  def commit(self, aux: contract.Aux) -> None:
    """Gives the inner router the Aux."""
    if contract.offered(self.inner, 'commit'):
      self.inner.commit(aux)

  def answer(self, routed: contract.Routed) -> contract.Routed:
    """Returns `routed` with the edges [G,N] of auxiliary experts dead."""
    a = routed.assignment
    if isinstance(a, assignment.SoftAssignment):
      raise UserError('layer compressed_experts: its router mixes tokens, a token has no experts; nearest: '
                      'st_moe')
    at = (jnp.arange(a.token.shape[0])[:, None], a.token, a.expert)  # dead edges are out of bounds
    nothing = jnp.full((a.token.shape[0], a.num_tokens, a.dead), -jnp.inf)
    gates = nothing.at[at].max(a.weight, mode='drop')                # [G, S, E + Z]
    chosen = jnp.isfinite(gates)
    rank = jnp.argsort(jnp.argsort(-jax.lax.stop_gradient(gates), -1), -1)
    auxiliary = jnp.where(chosen & (rank >= self.main), gates, 0)[..., :a.num_experts]
    total = auxiliary.sum(-1, keepdims=True)
    shares = auxiliary / jnp.where(total > 0, total, 1)
    computed = (rank < self.main).at[at].get(mode='fill', fill_value=False)
    edges = assignment.Edges(token=a.token, expert=jnp.where(computed, a.expert, a.dead), weight=a.weight,
                             num_tokens=a.num_tokens, num_experts=a.num_experts, num_virtual=a.num_virtual,
                             choices=a.choices)
    part = min(self.main / (contract.offered(self.inner, 'k') or self.main), 1)
    edges = assignment.expecting(edges, a.rows_per_group * part)
    return routed.replace(assignment=assignment.cap(edges, a.capacity),
                          aux=routed.aux.recorded(**{RECORD: shares}))
