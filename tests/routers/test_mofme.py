"""MoFME's router: equal logits are all kept, and what several passes make of the weights in training."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.core import assignment
from stmoe.core import contract
from stmoe.core.units import probabilities
from stmoe.routers import mofme

D, E, S = 6, 4, 5
MASK = jnp.ones((1, S), bool)


def context(**fields):
  return contract.Context(**contract.numbered(MASK), step=jnp.int32(0), tokens=jnp.float32(S), **fields)


def test_equal_logits_are_all_kept():
  logits = jnp.array([[[2.0, 1.0, 1.0, 0.0]] * S])
  a, aux = mofme.mofme(logits, MASK, 2)
  assert aux.load.tolist() == [S, S, S, 0] and a.rows_per_group == 2 * S
  first = jax.nn.softmax(logits[0, 0, :3])
  np.testing.assert_allclose(a.weight[0].reshape(E, S)[:3, 0], first, rtol=1e-6)


def test_passes_that_agree_have_weight_0_and_finite_gradients():
  samples = jnp.broadcast_to(jax.nn.softmax(jnp.arange(4.0)), (5, 1, S, E))
  weights, back = jax.vjp(mofme.uncertain, samples)
  assert not weights.any() and jnp.isfinite(back(jnp.ones_like(weights))[0]).all()


def test_weights_and_gradients_of_float32_are_those_of_float64():
  """Many tokens have the same two experts in all passes: weights of one size, almost without a gradient."""
  draw = lambda seed, n: jax.random.normal(jax.random.key(seed), (n, 64, E))
  samples, upstream = draw(0, 1) + 0.3 * draw(1, 5), draw(2, 1)
  weigh = lambda z: mofme.uncertain(probabilities.softmax_of(z, mofme.kept(z, 2)))
  weights, back = jax.vjp(weigh, samples)
  grads, = back(upstream[0])
  with jax.enable_x64(True):
    exact, exact_back = jax.vjp(weigh, samples.astype(jnp.float64))
    exact_grads, = exact_back(upstream[0].astype(jnp.float64))
  np.testing.assert_allclose(weights, exact, atol=1e-3)
  assert np.linalg.norm(np.subtract(grads, exact_grads)) < 3e-3 * np.linalg.norm(exact_grads)


def test_training_takes_the_spread_and_evaluation_one_pass():
  router = mofme.MoFME(D, num_experts=E, k=2, dropout_rate=0.4, rngs=nnx.Rngs(0))
  x = 9 * jax.random.normal(jax.random.key(0), (1, S, D))
  run = jax.jit(lambda router, ctx: router(x, ctx, {}).assignment)
  trained, plain = run(router, context(train=True, key=jax.random.key(1))), run(router, context())
  total = lambda a: jnp.sum(jnp.where(assignment.live(a), a.weight, 0).reshape(E, S), axis=0)
  np.testing.assert_allclose(total(plain), 1.0, rtol=1e-6)
  np.testing.assert_allclose(total(trained), 0.0, atol=2e-3)         # whitened deviations add up to nothing
  assert jnp.abs(trained.weight).max() > 0.05 and (trained.weight < -0.01).any()
  assert assignment.live(trained).sum() > 2 * S                      # experts that any pass chose


@pytest.mark.parametrize('fields, said', [
    (dict(passes=1), 'passes=1'), (dict(dropout_rate=0.0), 'nearest: passes=0'), (dict(k=5), 'at most 4')])
def test_what_has_no_spread_is_refused(fields, said):
  with pytest.raises(errors.UserError, match=said) as caught:
    mofme.MoFME(D, num_experts=E, **fields, rngs=nnx.Rngs(0))
  assert '\n' not in str(caught.value)
