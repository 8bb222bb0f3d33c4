"""The loss of ids against a plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe.targets import ids

V = 11


@pytest.fixture(scope='module')
def logits():
  return 3.0 * jax.random.normal(jax.random.key(0), (2, 5, V))


TARGETS = jnp.array([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]])
BATCH = dict(decoder_target_tokens=TARGETS, decoder_loss_weights=(TARGETS > 0).astype(jnp.int32))


def plain(logits, targets, z, smoothing):
  """Returns the same by soft targets, as T5X writes it: f32[B,T]."""
  off = smoothing / (V - 1)
  soft = jnp.where(jax.nn.one_hot(targets, V) > 0, 1.0 - smoothing, off)
  entropy = -((1 - smoothing) * np.log(1 - smoothing) + (V - 1) * off * np.log(off + 1e-20))
  log_z = jax.nn.logsumexp(logits, axis=-1)
  return -jnp.sum(soft * jax.nn.log_softmax(logits), axis=-1) - entropy + z * log_z ** 2


@pytest.mark.parametrize('z, smoothing', [(0.0, 0.0), (1e-2, 0.0), (1e-2, 0.1)])
def test_cross_entropy_and_its_gradient(logits, z, smoothing):
  mine = lambda x: jnp.sum(sum(ids.cross_entropy(x, TARGETS, z, smoothing)) * jnp.arange(5))
  theirs = lambda x: jnp.sum(plain(x, TARGETS, z, smoothing) * jnp.arange(5))
  (a, da), (b, db) = (jax.value_and_grad(f)(logits) for f in (mine, theirs))
  np.testing.assert_allclose(a, b, rtol=1e-5)
  np.testing.assert_allclose(da, db, rtol=1e-4, atol=1e-5)


def test_smoothed_loss_of_the_smoothed_prediction_is_zero():
  perfect = jnp.log(jnp.where(jax.nn.one_hot(TARGETS, V) > 0, 0.9, 0.1 / (V - 1)))
  np.testing.assert_allclose(ids.cross_entropy(perfect, TARGETS, 0.0, 0.1)[0], 0.0, atol=1e-5)


def test_uniform_logits_cost_the_log_of_the_vocabulary_per_real_token():
  sums = ids.task(jnp.zeros((2, 5, V)), BATCH)
  np.testing.assert_allclose(sums['ce'], 8 * np.log(V), rtol=1e-6)     # 8 of 10 targets are real
  assert float(sums['correct']) == 0.0                                # argmax of ties is 0, padding's id


def test_sigmoid_cross_entropy_by_hand():
  logits = jnp.array([[[0.0, 2.0, -1.0]]])
  sigmoid = lambda l: 1 / (1 + np.exp(-l))
  expected = -np.log(sigmoid(2.0)) - np.log(1 - sigmoid(0.0)) - np.log(1 - sigmoid(-1.0))
  found = ids.sigmoid_cross_entropy(logits, jnp.array([[1]]))
  np.testing.assert_allclose(found, [[expected]], rtol=1e-6)
  batch = dict(decoder_target_tokens=jnp.array([[1, 0]]), decoder_loss_weights=jnp.array([[1, 0]]))
  sums = ids.task(jnp.tile(logits, (1, 2, 1)), batch, sigmoid=True)
  np.testing.assert_allclose(sums['ce'], expected, rtol=1e-6)
  assert sums['correct'] == 1 and sums['z'] == 0
