"""Router losses: values in known cases, masks, divisors, gradients that stay finite."""

import jax
import jax.numpy as jnp
import numpy as np

from stmoe.core import losses

PROBS = jax.nn.softmax(jax.random.normal(jax.random.key(0), (2, 6, 3)))
CHOICE = jax.lax.top_k(PROBS, 2)[1]
MASK = np.arange(6) < np.array([[6], [2]])


def test_balance_against_loops():
  total = 0.0
  for g in range(2):
    real = [s for s in range(6) if MASK[g, s]]
    for e in range(3):
      f = sum(int(CHOICE[g, s, 0]) == e for s in real) / len(real)
      p = sum(float(PROBS[g, s, e]) for s in real) / len(real)
      total += len(real) * 3 * f * p
  np.testing.assert_allclose(losses.balance(PROBS, CHOICE[..., :1], MASK), total / 8, rtol=1e-5)
  np.testing.assert_allclose(losses.balance(PROBS, CHOICE[..., :1], MASK, 16.0), total / 16, rtol=1e-5)


def test_any_choice_is_the_sum_over_choice_levels():
  levels = [losses.balance(PROBS, CHOICE[..., i:i + 1], MASK) for i in range(2)]
  np.testing.assert_allclose(losses.balance(PROBS, CHOICE, MASK), sum(levels), rtol=1e-6)


def test_balance_gradient_goes_through_the_probabilities_only():
  # d/dP: E * f_e per token over the divisor.
  grad = jax.grad(lambda p: losses.balance(p, jnp.zeros((2, 6, 1), int), MASK))(PROBS)
  np.testing.assert_allclose(grad[0, 0], [3 / 8, 0, 0], rtol=1e-6)   # f = (1, 0, 0), E = 3, 8 real tokens
  assert not jnp.any(grad[1, 2:])                                    # padding


def test_second_place_by_hand():
  probs = jnp.array([[[0.5, 0.3, 0.2]]])
  choice = jnp.array([[[0, 1]]])
  # Without expert 0 the rest is (0, 0.6, 0.4); f = (0, 1, 0): 3 * 0.6.
  np.testing.assert_allclose(losses.second_place(probs, choice, jnp.ones((1, 1), bool)), 1.8, rtol=1e-6)


def test_second_place_counts_no_third_choice():
  np.testing.assert_allclose(losses.second_place(PROBS, jax.lax.top_k(PROBS, 3)[1], MASK),
                             losses.second_place(PROBS, CHOICE, MASK), rtol=1e-6)


def test_probabilities_of_padding_may_be_anything():
  np.testing.assert_array_equal(losses.balance(jnp.where(MASK[..., None], PROBS, jnp.nan), CHOICE, MASK),
                                losses.balance(PROBS, CHOICE, MASK))


def test_second_place_is_finite_where_the_first_takes_everything():
  probs = lambda l: jax.nn.softmax(l)
  loss = lambda l: losses.second_place(probs(l), jnp.array([[[0, 1]]]), jnp.ones((1, 1), bool))
  assert jnp.all(jnp.isfinite(jax.grad(loss)(jnp.array([[[200.0, 0.0, 0.0]]]))))


def test_z_by_hand_and_without_padding():
  logits = jnp.array([[[1.0, 1.0], [jnp.nan, jnp.inf]]])
  mask = jnp.array([[True, False]])
  value, grad = jax.value_and_grad(losses.z)(logits, mask)
  lse = 1 + np.log(2)
  np.testing.assert_allclose(value, lse ** 2, rtol=1e-6)
  np.testing.assert_allclose(grad[0], [[lse, lse], [0, 0]], rtol=1e-6)   # 2 lse softmax, with softmax 1/2


def test_popularity_of_one_wanted_token_is_the_number_of_tokens():
  wanted = jnp.zeros((1, 4, 2)).at[0, 1].set(1)
  assert losses.popularity(wanted, jnp.ones((1, 4), bool)) == 4


def test_nothing_real_is_zero_with_zero_gradient():
  nothing = np.zeros((2, 6), bool)
  for loss in (lambda p: losses.balance(p, CHOICE, nothing), lambda p: losses.z(p, nothing),
               lambda p: losses.popularity(p, nothing)):
    value, grad = jax.value_and_grad(loss)(PROBS)
    assert value == 0 and not jnp.any(grad)
