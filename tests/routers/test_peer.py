"""PEER's retrieval against all pairs of keys, and experts that two heads have in common."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe.conform import generic
from stmoe.core import contract
from stmoe.routers import peer


def test_the_best_pairs_are_those_of_all_pairs():
  query = jax.random.normal(jax.random.key(0), (5, 3, 2, 4))
  keys = jax.random.normal(jax.random.key(1), (2, 7, 4))
  scores, experts = peer.retrieve(query, keys, 4)
  first, second = (np.einsum('qhd,nd->qhn', query[:, :, c], keys[c]) for c in (0, 1))
  pairs = (first[..., :, None] + second[..., None, :]).reshape(5, 3, 49)
  np.testing.assert_array_equal(experts, np.argsort(-pairs, axis=-1)[..., :4])
  np.testing.assert_allclose(scores, -np.sort(-pairs, axis=-1)[..., :4], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('gates', peer.GATES)
def test_the_output_is_the_sum_over_heads_of_gated_neurons(gates):
  router = generic.router('peer', 8, 9, heads=3, d_key=4, gates=gates)
  bank = generic.bank('mlp', 8, 9, d_ff=1, activation='gelu', use_bias=False)
  x = jax.random.normal(jax.random.key(2), (2, 6, 8))
  ctx = contract.Context.of(jnp.ones((2, 6), jnp.int32))
  run = jax.jit(lambda router, bank: lookup.executor('fetch')(x, router(x, ctx, {}).assignment, bank))
  y = run(router, bank)
  query = np.einsum('gsd,de->gse', x, router.w[...]).reshape(2, 6, 3, 2, 2)
  scores, experts = peer.retrieve(jnp.asarray(query), router.keys[...], 2)
  relu = gates == 'relu'
  weight = np.maximum(scores, 0) if relu else np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
  u, v = bank.wi[...][..., 0], bank.wo[...][:, 0]                    # [E, D] each
  h = jax.nn.gelu(np.einsum('gsd,gshkd->gshk', x, u[experts]))
  want = np.einsum('gshk,gshk,gshkd->gsd', weight, h, v[experts])
  np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('fields, told', [
    (dict(num_experts=8), 'num_experts=8 is no square'), (dict(num_experts=9, k=4), 'k=4 of 3 keys'),
    (dict(num_experts=9, d_key=3), 'd_key=3 has no two halves; nearest: 4')])
def test_what_does_not_fit_is_a_line(fields, told):
  with pytest.raises(errors.UserError, match=told):
    generic.router('peer', 8, **dict(num_experts=9) | fields)
