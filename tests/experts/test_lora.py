"""Experts of one shared network and low-rank parts of their own."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import axes
from stmoe.core.transport import layouts
from stmoe.experts import lora
from tests.experts import generic

D, F, E, R = 6, 10, 3, 2
ROWS = jax.random.normal(jax.random.key(0), (E, 5, D))


def test_the_matrix_of_an_expert_is_the_shared_one_plus_its_low_rank_part():
  bank = generic.of(lora.Lora, D, E, d_ff=F, rank=R, alpha=6.0)
  whole = lambda m: m.w[...] + 3.0 * jnp.einsum('eir,ero->eio', m.a[...], m.b[...])      # alpha / r = 3
  h = jax.nn.silu(jnp.einsum('erd,edf->erf', ROWS, whole(bank.wi)))
  h = h * jnp.einsum('erd,edf->erf', ROWS, whole(bank.wg))
  want = jnp.einsum('erf,efd->erd', h, whole(bank.wo))
  np.testing.assert_allclose(bank(layouts.Buckets(ROWS)).x, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('gated', [True, False])
def test_experts_begin_as_the_shared_network(gated):
  bank = lora.Lora(D, num_experts=E, d_ff=F, rank=R, gated=gated, rngs=nnx.Rngs(0))
  h = jax.nn.silu(ROWS @ bank.wi.w[...]) * (ROWS @ bank.wg.w[...] if gated else 1)
  np.testing.assert_allclose(bank(layouts.Buckets(ROWS)).x, h @ bank.wo.w[...], rtol=1e-4, atol=1e-5)


def test_the_network_is_held_once():
  bank = lora.Lora(D, num_experts=E, d_ff=F, rank=R, rngs=nnx.Rngs(0))
  sizes = {own: sum(w.size for w, mine in zip(jax.tree.leaves(bank), jax.tree.leaves(axes.per_expert(bank)))
                    if mine == own) for own in (True, False)}
  assert sizes == {False: 3 * D * F, True: 3 * E * R * (D + F)}


def test_dropout_is_of_the_low_rank_part_alone():
  bank = generic.of(lora.Lora, D, E, d_ff=F, rank=R, dropout_rate=0.5)
  rows, key = layouts.Buckets(ROWS), jax.random.key(1)
  assert jnp.abs(bank(rows, key).x - bank(rows).x).max() > 1e-3
  for m in (bank.wi, bank.wg, bank.wo):
    m.b[...] = 0 * m.b[...]
  np.testing.assert_array_equal(bank(rows, key).x, bank(rows).x)
