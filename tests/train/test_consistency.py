"""Two stochastic passes as a training loss: the divergence, its weight, microbatches; draws in evaluation."""

import types

from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from stmoe import axes
from stmoe import errors
from stmoe.analysis import flops
from stmoe.core import contract
from stmoe.targets import ids as targets
from stmoe.train import check
from stmoe.train import evaluate
from stmoe.train import state as states
from stmoe.train import step as steps
from tests.train import tiny_run

V = 7
P, Q = 3.0 * jax.random.normal(jax.random.key(0), (2, 2, 5, V))
TWO = {'loss.passes': 2, 'loss.consistency': 5.0}


def plain(x, y):
  """Returns f32[B,T], the formula of the notes."""
  log_p, log_q = jax.nn.log_softmax(x), jax.nn.log_softmax(y)
  return 0.5 * jnp.sum((jnp.exp(log_p) - jnp.exp(log_q)) * (log_p - log_q), axis=-1)


def test_divergence_and_gradients_to_both_sides():
  weigh = lambda f: lambda x, y: jnp.sum(f(x, y) * jnp.arange(5))
  (a, da), (b, db) = (jax.value_and_grad(weigh(f), (0, 1))(P, Q) for f in (targets.consistency, plain))
  np.testing.assert_allclose(a, b, rtol=1e-5)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), da, db)
  assert all(jnp.abs(d).max() > 0.1 for d in da)


def test_divergence_by_hand():
  # p = (3/4, 1/4), q = (1/4, 3/4): 1/2 * 2 * 1/2 * ln 3.
  x = jnp.log(jnp.array([[[3.0, 1.0]]]))
  np.testing.assert_allclose(targets.consistency(x, x[..., ::-1]), [[0.5 * np.log(3)]], rtol=1e-6)
  assert targets.consistency(x, x) == 0


def test_certain_predictions_are_finite():
  x = jnp.array([[[300.0, 0.0, -300.0]]])
  value, grads = jax.value_and_grad(lambda x, y: targets.consistency(x, y).sum(), (0, 1))(x, x[..., ::-1])
  np.testing.assert_allclose(value, 600.0)
  assert jnp.all(jnp.isfinite(jnp.stack(grads)))


class Fake:
  """A plan of a model whose passes differ by what they are, not by key or microbatch."""

  def __init__(self, target):
    self.target = target

  def model(self, params, routers):
    def call(part, key, train, step, tokens):
      scale = 1.0 if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else 1.0 + key.astype(jnp.float32)
      ids = part['decoder_input_tokens']
      aux = contract.Aux(losses=dict(balance=jnp.sum(ids * scale) / tokens), load=jnp.ones(2),
                         metrics=dict(a_max=jnp.asarray(scale)))
      return scale * params['w'][ids], dict(layer=aux)
    call.count_tokens = lambda batch: jnp.sum(batch['decoder_loss_weights'])
    return call

  def trainable(self, params):
    return params


def gradients(monkeypatch, microbatches, keys=(0, 1), **loss):
  """Returns (gradients, report, Aux) of six rows of 0 to 4 real tokens; `keys` are those of the passes."""
  monkeypatch.setattr(steps.jax.random, 'split', lambda key, n: jnp.array(keys))
  real = (np.arange(4) < np.array([[4], [1], [3], [4], [2], [0]])).astype(np.int32)
  ids = np.random.default_rng(0).integers(0, V, (6, 4)) * real
  batch = dict(decoder_input_tokens=ids, decoder_target_tokens=(3 * ids + 1) % V, decoder_loss_weights=real)
  cfg = ml_collections.ConfigDict(dict(losses=dict(balance=(0.1, 'mean'))))
  plan = Fake(targets.Ids(**dict(z=0.01, label_smoothing=0.1) | loss))
  state = dict(params=dict(w=jax.random.normal(jax.random.key(1), (V, V))), router_state={}, step=0,
               key=jax.random.key(0))
  return steps.gradients(cfg, plan, state, jax.tree.map(jnp.asarray, batch), microbatches)


def test_the_loss_of_two_passes(monkeypatch):
  one = gradients(monkeypatch, 1)[1]
  _, report, aux = gradients(monkeypatch, 1, passes=2, consistency=5.0)
  alone = gradients(monkeypatch, 1, passes=2)[1]
  assert 'loss/consistency' not in one and report['loss/consistency'] > 0.01
  # The first pass is the single one; the second has twice its balance loss.
  np.testing.assert_allclose(report['loss/aux_balance'], 1.5 * one['loss/aux_balance'], rtol=1e-6)
  parts = 2 * (report['loss/ce'] + report['loss/z'] + 0.1 * report['loss/aux_balance'])
  np.testing.assert_allclose(report['loss/total'], parts + 5 * report['loss/consistency'], rtol=1e-6)
  np.testing.assert_allclose(alone['loss/total'], parts, rtol=1e-6)
  assert aux['layer'].load.tolist() == [2, 2] and aux['layer'].metrics['a_max'] == 2


def test_microbatches_change_nothing(monkeypatch):
  whole, parts = (gradients(monkeypatch, n, passes=2, consistency=5.0) for n in (1, 3))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), parts[:2], whole[:2])


def test_passes_of_equal_predictions_double_the_gradient(monkeypatch):
  once, twice = gradients(monkeypatch, 1), gradients(monkeypatch, 1, (0, 0), passes=2, consistency=5.0)
  assert twice[1]['loss/consistency'] == 0
  np.testing.assert_allclose(twice[0]['w'], 2 * once[0]['w'], rtol=1e-5, atol=1e-7)


def step_of(cfg):
  """Returns the report of one step of the tiny model on eight full rows."""
  ids = np.random.default_rng(0).integers(3, 259, (8, 32)).astype(np.int32)
  batch = {f'decoder_{name}': ids for name in ('target_tokens', 'input_tokens')}
  batch |= {f'decoder_{name}': np.ones_like(ids) for name in ('loss_weights', 'segment_ids')}
  batch['decoder_positions'] = np.tile(np.arange(32, dtype=np.int32), (8, 1))
  mesh = states.make_mesh(cfg.mesh, jax.devices()[:1])
  with jax.set_mesh(mesh):
    plan = states.blueprint(cfg, mesh)
    return jax.device_get(steps.make(cfg, plan)(states.init(cfg, plan), check.place(batch, mesh))[1])


def test_thor_draws_another_expert_in_the_second_pass(tmp_path):
  router = {'blocks.m.router': dict(name='thor', num_experts=16), 'losses': {}, 'model.layers': (('m', 1),)}
  report = step_of(tiny_run.config(tmp_path, **router, **TWO))
  load = report['load']['decoder_00']
  # Each pass sends all of its 8 x 32 tokens to one expert of 16.
  assert sorted(load[load > 0].tolist()) == [256, 256]
  assert report['loss/consistency'] > 0 and np.isfinite(report['grad_norm'])


def test_dropout_of_a_dense_model_is_r_drop(tmp_path):
  dense = {'model.layers': (('d', 1),), 'losses': {}, 'model.dropout_rate': 0.3}
  assert step_of(tiny_run.config(tmp_path, **dense, **TWO))['loss/consistency'] > 1e-3


class Coin(nnx.Module):
  """Predicts token 0 or 1 with three quarters, as its key falls."""

  def __call__(self, batch, key, train):
    side = jax.random.bernoulli(key).astype(jnp.int32)
    logits = jnp.log(jnp.where(jnp.arange(2) == side, 0.75, 0.25)) + 5 * side
    ids = batch['decoder_target_tokens']
    return jnp.broadcast_to(logits, (*ids.shape, 2)), {}


def test_draws_average_distributions():
  ids = jnp.zeros((1, 3), jnp.int32)
  batch = dict(decoder_target_tokens=ids, decoder_loss_weights=jnp.ones((1, 3), jnp.int32))
  mesh = axes.make_mesh(devices=jax.devices()[:1])
  plan = types.SimpleNamespace(model=lambda params, routers: Coin(), mesh=mesh, target=targets.Ids())
  key = jax.random.key(3)
  single = evaluate.make(plan)({}, {}, batch, key)['ce'] / 3
  assert np.isclose(single, -np.log(0.75)) or np.isclose(single, -np.log(0.25))
  ones = int(sum(jax.random.bernoulli(k) for k in jax.random.split(key, 8)))
  assert 0 < ones < 8
  mean = (0.25 * ones + 0.75 * (8 - ones)) / 8                       # of the probability of token 0
  np.testing.assert_allclose(evaluate.make(plan, 8)({}, {}, batch, key)['ce'] / 3, -np.log(mean), rtol=1e-5)


def test_old_configurations_have_one_pass(tmp_path):
  cfg = tiny_run.config(tmp_path)
  with cfg.unlocked():
    del cfg.loss['passes']
  check.counts(cfg)
  once = flops.active_per_token(cfg)
  twice = flops.active_per_token(tiny_run.config(tmp_path, **TWO))
  assert twice['train'] == 2 * once['train'] and twice['forward'] == once['forward']


@pytest.mark.parametrize('loss, message', [
    ({'loss.passes': 3}, 'loss.passes=3: expected a whole number from 1 to 2; nearest: 2'),
    ({'loss.passes': 0}, 'loss.passes=0'),
    ({'loss.consistency': 1.0}, 'loss.consistency=1.0 with loss.passes=1'),
    ({'loss.consistency': -1.0, 'loss.passes': 2}, 'at least 0'),
    ({'eval.draws': 0}, 'eval.draws=0: .* at least 1')])
def test_mistakes(tmp_path, loss, message):
  with pytest.raises(errors.UserError, match=message):
    check.counts(tiny_run.config(tmp_path, **loss))
