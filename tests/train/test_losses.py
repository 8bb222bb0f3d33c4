"""The task's loss against a plain formula, and the weighing of router losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.core import contract
from stmoe.train import losses

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
  mine = lambda x: jnp.sum(sum(losses.cross_entropy(x, TARGETS, z, smoothing)) * jnp.arange(5))
  theirs = lambda x: jnp.sum(plain(x, TARGETS, z, smoothing) * jnp.arange(5))
  (a, da), (b, db) = (jax.value_and_grad(f)(logits) for f in (mine, theirs))
  np.testing.assert_allclose(a, b, rtol=1e-5)
  np.testing.assert_allclose(da, db, rtol=1e-4, atol=1e-5)


def test_smoothed_loss_of_the_smoothed_prediction_is_zero():
  perfect = jnp.log(jnp.where(jax.nn.one_hot(TARGETS, V) > 0, 0.9, 0.1 / (V - 1)))
  np.testing.assert_allclose(losses.cross_entropy(perfect, TARGETS, 0.0, 0.1)[0], 0.0, atol=1e-5)


def test_uniform_logits_cost_the_log_of_the_vocabulary_per_real_token():
  sums = losses.task(jnp.zeros((2, 5, V)), BATCH)
  np.testing.assert_allclose(sums['ce'], 8 * np.log(V), rtol=1e-6)     # 8 of 10 targets are real
  assert float(sums['correct']) == 0.0                                # argmax of ties is 0, padding's id


def report(**values):
  return contract.Aux(losses={n: jnp.float32(v) for n, v in values.items()}, load=jnp.ones(2), metrics={})


AUX = dict(a=report(balance=2.0, z=10.0), b=report(balance=4.0))


@pytest.mark.parametrize('weighted, expected', [
    (dict(balance=(0.5, 'mean')), 1.5), (dict(balance=(0.5, 'sum')), 3.0),
    (dict(balance=(0.5, 'mean'), z=(0.1, 'mean')), 2.5),   # z: the mean over the one layer with it
    (dict(balance=(0.0, 'mean'), z=(0.0, 'sum')), 0.0), ({}, 0.0)])
def test_router_losses(weighted, expected):
  loss, values = losses.router(AUX, weighted)
  assert float(loss) == expected
  assert float(values['z']) == 10.0
  assert float(values['balance']) == (6.0 if weighted.get('balance', ('', ''))[1] == 'sum' else 3.0)


def test_coefficient_zero_keeps_nan_out():
  assert float(losses.router(dict(a=report(z=np.nan)), dict(z=(0.0, 'mean')))[0]) == 0.0


@pytest.mark.parametrize('weighted, message', [
    (dict(balanec=(0.1, 'mean')), "'balanec'; nearest: balance .reported: balance, z"),
    (dict(balance=(0.1, 'average')), "'average'")])
def test_losses_nobody_reports_are_user_errors(weighted, message):
  with pytest.raises(errors.UserError, match=message):
    losses.check(AUX, weighted)


def test_a_name_without_coefficient_is_no_mistake():
  losses.check({}, dict(balance=(0.0, 'mean')))


def test_sigmoid_cross_entropy_by_hand():
  logits = jnp.array([[[0.0, 2.0, -1.0]]])
  sigmoid = lambda l: 1 / (1 + np.exp(-l))
  expected = -np.log(sigmoid(2.0)) - np.log(1 - sigmoid(0.0)) - np.log(1 - sigmoid(-1.0))
  found = losses.sigmoid_cross_entropy(logits, jnp.array([[1]]))
  np.testing.assert_allclose(found, [[expected]], rtol=1e-6)
  batch = dict(decoder_target_tokens=jnp.array([[1, 0]]), decoder_loss_weights=jnp.array([[1, 0]]))
  sums = losses.task(jnp.tile(logits, (1, 2, 1)), batch, sigmoid=True)
  np.testing.assert_allclose(sums['ce'], expected, rtol=1e-6)
  assert sums['correct'] == 1 and sums['z'] == 0
