"""Skywork-MoE on an example worked by hand: standardised logits, and coefficients that follow drops."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.core import contract
from stmoe.routers import skywork

ALL = np.ones((1, 4), bool)
# Unbiased deviation 1 around the mean: standardised logits are -1, 0, 1 in some order.
LOGITS = 5.0 + 3.0 * jnp.array([[[1.0, 0.0, -1.0], [1.0, 0.0, -1.0], [1.0, -1.0, 0.0], [-1.0, 0.0, 1.0]]])
route = jax.jit(skywork.skywork, static_argnums=(3, 4), static_argnames=('scale', 'limit'))
P = np.exp([1.0, 0.0, -1.0]) / np.exp([1.0, 0.0, -1.0]).sum()


def test_by_hand(edges):
  a, aux = route(LOGITS, 0.5, ALL, 2, 2)
  first, second = (round(float(p), 4) for p in P[:2] / P[:2].sum())
  # First choices 0 0 0 2, second 1 1 2 1: expert 0 has two slots, token 2 comes third; so does token 3 at 1.
  assert edges(a) == {(0, 0, 0, first), (1, 0, 1, first), (3, 2, 0, first), (0, 1, 0, second),
                      (1, 1, 1, second), (2, 2, 1, second)}
  assert aux.metrics['overflow_frac'] == aux.metrics['drop_frac'] == 0.25
  # f of first choices: 3/4, 0, 1/4; mean probabilities of experts 0 and 2 from the columns.
  expected = 3 * (0.75 * (3 * P[0] + P[2]) / 4 + 0.25 * (2 * P[2] + P[1] + P[0]) / 4)
  np.testing.assert_allclose(aux.losses['balance'], expected, rtol=1e-5)
  np.testing.assert_allclose(aux.losses['adaptive_balance'], 0.5 * expected, rtol=1e-5)


def test_scale_of_the_weights_changes_nothing_and_equal_logits_are_finite():
  a, b = route(LOGITS, 0.0, ALL, 4, 2)[0], route(7.0 * LOGITS, 0.0, ALL, 4, 2)[0]
  np.testing.assert_allclose(a.weight, b.weight, rtol=1e-6)
  sharper = route(LOGITS, 0.0, ALL, 4, 2, scale=2.0)[0].weight.max()
  np.testing.assert_allclose(sharper, 1 / (1 + np.exp(-2)), rtol=1e-5)
  value, grad = jax.value_and_grad(lambda l: route(l, 0.0, ALL, 4, 2)[0].weight[0, 0])(jnp.zeros((1, 4, 3)))
  assert value == 0.5 and jnp.all(jnp.isfinite(grad))
  plain = route(LOGITS, 0.0, ALL, 4, 2, scale=None)[0].weight.max()
  np.testing.assert_allclose(plain, 1 / (1 + np.exp(-3)), rtol=1e-5)


def test_largest_score_is_that_of_the_unbiased_deviation():
  # One expert against 15 equal ones: (E - 1) / sqrt(E) = 3.75.
  logits = jnp.zeros((1, 1, 16)).at[0, 0, 3].set(100.0)
  np.testing.assert_allclose(skywork.standardize(logits, 1.0).max(), 3.75, rtol=1e-6)


def test_alpha_follows_the_drop_rate_up_to_its_limit():
  router = skywork.Skywork(8, num_experts=4, alpha_start=0.0, rngs=nnx.Rngs(0))
  drop = lambda d: contract.Aux(losses={}, load=jnp.zeros(4), metrics={},
                                statistics=dict(overflow=contract.mean(jnp.float32(d), jnp.float32(1))))
  router.commit(drop(0.04))
  np.testing.assert_allclose(router.alpha[...], 0.01 * 0.2 * 0.04, rtol=1e-5)
  router.commit(drop(0.9))                                           # 0.18 is over alpha_max = 0.01
  np.testing.assert_allclose(router.alpha[...], 0.99 * 8e-5 + 0.01 * 0.01, rtol=1e-5)
  started = skywork.Skywork(8, num_experts=4, rngs=nnx.Rngs(0))
  np.testing.assert_allclose(started.alpha[...], 0.01)


def test_dropless_measures_what_the_capacity_would_drop(call, context):
  x, mask = jax.random.normal(jax.random.key(0), (2, 16, 8)), np.ones((2, 16), bool)
  fields = dict(num_experts=4, capacity_factor=(1.0, 1.0), min_capacity=1, rngs=nnx.Rngs(0))
  dropping = call(skywork.Skywork(8, **fields), x, context(mask)).aux.metrics
  fields['rngs'] = nnx.Rngs(0)
  free = call(skywork.Skywork(8, dropless=True, **fields), x, context(mask)).aux.metrics
  assert free['drop_frac'] == 0 < free['overflow_frac'] == dropping['overflow_frac'] == dropping['drop_frac']


def test_no_gradient_through_alpha():
  grad = jax.grad(lambda alpha: route(LOGITS, alpha, ALL, 4, 2)[1].losses['adaptive_balance'])(0.5)
  assert grad == 0


def test_one_expert():
  with pytest.raises(errors.UserError, match='num_experts=1 has no deviation'):
    skywork.Skywork(8, num_experts=1, k=1, rngs=nnx.Rngs(0))
