"""AdaMoE by numbers worked by hand: null experts, their balance, the bias that holds a target."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe.core import contract
from stmoe.routers import adamoe

# Two real experts and two nulls; the last token is padding.
PROBS = np.array([[0.4, 0.1, 0.3, 0.2], [0.4, 0.3, 0.2, 0.1], [0.1, 0.1, 0.4, 0.4], [0.7, 0.1, 0.1, 0.1]],
                 np.float32)
MASK = np.array([[True, True, True, False]])
route = functools.partial(jax.jit(adamoe.adamoe, static_argnums=(2, 3)), np.log(PROBS)[None], MASK, 2, 2)


def build(**fields):
  return lookup.recipe('router', dict(name='adamoe', num_experts=2, num_null=2, k=2) | fields)(
      4, rngs=nnx.Rngs(0))


def weights(a):
  """f32[S,E] of the first group."""
  dense = np.zeros((a.num_tokens, a.dead + 1))
  dense[a.token[0], a.expert[0]] = a.weight[0]
  return dense[:, :a.num_experts]


def test_nulls_take_no_mass_and_compute_nothing():
  a, aux = route()
  # Choices: 0 and a null; 0 and 1; two nulls; padding.
  np.testing.assert_allclose(weights(a), [[1, 0], [4 / 7, 3 / 7], [0, 0], [0, 0]], rtol=1e-6)
  assert aux.load.tolist() == [2, 1, 2, 1]
  np.testing.assert_allclose(aux.metrics['active_experts'], 1.0)
  assert aux.metrics['drop_frac'] == aux.metrics['left_behind'] == 0
  assert a.rows_per_group == 4 * 2 * 2 / 4


def test_nulls_are_balanced_as_one():
  losses, p = route()[1].losses, PROBS[:3].mean(0)
  np.testing.assert_allclose(losses['plain_balance'], 4 * np.array([2, 1, 2, 1]) / 3 @ p, rtol=1e-6)
  np.testing.assert_allclose(losses['balance'], 4 * np.array([2, 1, 1.5, 1.5]) / 3 @ p, rtol=1e-6)


CTX = contract.Context(**contract.numbered(jnp.ones((2, 64), bool)), step=jnp.int32(0),
                       tokens=jnp.float32(128))


def test_tiled_nulls_begin_as_the_two_best_experts():
  """With k = 4 of 8 experts and 16 copies the choices are the best one, its two copies, and the second."""
  router = build(num_experts=8, num_null=16, k=4, tiled=True)
  x = jax.random.normal(jax.random.key(0), (2, 64, 4))
  np.testing.assert_array_equal(router.w[...][:, 8:16], router.w[...][:, :8])
  logits, a = jax.jit(lambda: (router.logits(x, CTX)[0], router(x, CTX, {}).assignment))()
  real = np.asarray(logits[:, :8])
  expected = np.where(real >= np.sort(real)[:, -2:-1], np.exp(real), 0)
  np.testing.assert_allclose(weights(a), expected / expected.sum(1, keepdims=True), rtol=1e-5)


def test_a_bias_moves_the_mean_number_of_real_experts_to_its_target():
  router = build(num_experts=4, num_null=4, k=4, target=1.5, rate=0.01)
  logits = jax.random.normal(jax.random.key(0), (2, 64, 8))

  @jax.jit
  def train(router):
    def step(router, _):
      routed = router.decide(logits, CTX, {})
      router.commit(routed.aux)
      return router, (routed.aux.metrics['active_experts'], routed.assignment)
    return jax.lax.scan(step, router, length=40)[1]
  numbers, a = train(router)
  assert numbers[0] > 1.9 and abs(numbers[-8:].mean() - 1.5) < 0.1
  assert a.spare == 64 * (4 - 2 * 1.5)                               # of eight experts half are real
  assert contract.offered(build(), 'commit') is None


@pytest.mark.parametrize('fields, message', [
    (dict(k=1), 'k=1 with num_experts=2, num_null=2; k is at least 2'), (dict(k=5), 'at most 4'),
    (dict(target=2.0), 'target=2.0 with k=2, num_experts=2'),
    (dict(target=1.0, num_null=0), 'nearest: null')])
def test_what_does_not_fit_is_one_line(fields, message):
  with pytest.raises(errors.UserError, match=message):
    build(**fields)
