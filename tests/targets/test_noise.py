"""DDPM and flow matching: what the model has, what it costs, and processes run backwards to a known image."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.targets import ddpm
from stmoe.targets import flow

IMAGE = np.random.default_rng(0).uniform(-1, 1, (1, 3, 3, 2)).astype(np.float32)
TARGETS = dict(ddpm=ddpm.Ddpm(variance=False), cosine=ddpm.Ddpm(schedule='cosine', variance=False),
               flow=flow.Flow())


def batch(share, weights=None, seed=1):
  """Images that are all IMAGE, each with noise of a level."""
  noise = np.random.default_rng(seed).normal(size=(len(share), *IMAGE.shape[1:])).astype(np.float32)
  weights = np.ones(len(share), np.int32) if weights is None else np.asarray(weights)
  return dict(image=jnp.broadcast_to(IMAGE, noise.shape), noise=jnp.asarray(noise),
              weights=jnp.asarray(weights)[:, None]) | {'given/time': jnp.asarray(share, jnp.float32)}


def perfect(target, x, share, now=None):
  """What a model gives that knows that every image is IMAGE; `share` is the level of x."""
  if isinstance(target, flow.Flow):
    return (x - IMAGE) / share
  abar = target.process.abar[0] if now is None else now['abar']
  return (x - jnp.sqrt(abar) * IMAGE) / jnp.sqrt(1 - abar)


@pytest.mark.parametrize('name', TARGETS)
def test_the_true_noise_costs_nothing_and_rows_without_an_image_do_not_count(name):
  target, data = TARGETS[name], batch([0.05, 0.5, 0.999, 0.5], [1, 1, 1, 0])
  truth = data['noise'] - (data['image'] if name == 'flow' else 0)
  wrong = truth.at[3].set(9.0)
  loss, report = target.loss(wrong, data, target.counts(data))
  assert float(target.counts(data)) == 3 and float(loss) == float(report['loss/mse']) == 0
  off, _ = target.loss(wrong.at[0].add(2.0), data, target.counts(data))
  np.testing.assert_allclose(off, 4 / 3, rtol=1e-6)
  totals = jax.tree.map(np.float64, target.judge(wrong.at[0].add(2.0), data) | dict(weight=3))
  found = target.metrics(totals)
  np.testing.assert_allclose([found[f'eval/mse_{i}'] for i in (0, 5, 9)], [4, 0, 0], rtol=1e-6)
  assert 'eval/mse_1' not in found and found['eval/loss'] == pytest.approx(4 / 3)


def test_what_the_model_has():
  data = batch([0.0, 0.4995, 1.0])
  posed = TARGETS['ddpm'].posed(data)
  np.testing.assert_array_equal(posed['given/time'], [0, 499, 999])
  abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[499]
  expected = np.sqrt(abar) * IMAGE[0] + np.sqrt(1 - abar) * data['noise'][1]
  np.testing.assert_allclose(posed['image'][1], expected, rtol=1e-5, atol=1e-6)
  straight = TARGETS['flow'].posed(data)
  np.testing.assert_allclose(straight['given/time'], [0, 499.5, 1000])
  np.testing.assert_allclose(straight['image'][0], IMAGE[0]), np.testing.assert_allclose(
      straight['image'][2], data['noise'][2])


@pytest.mark.parametrize('name, sampler, steps', [
    ('ddpm', 'ddim', 7), ('ddpm', 'ddpm', 1000), ('cosine', 'ddpm', 20), ('ddpm', 'ddim', 1),
    ('flow', 'euler', 1), ('flow', 'euler', 9)])
def test_a_perfect_model_leads_back_to_the_image(name, sampler, steps):
  """DDPM ends with a step without noise, so that the last image is the one that the prediction means."""
  target = TARGETS[name]
  path = {key: jnp.asarray(np.ascontiguousarray(a), jnp.float32)
          for key, a in target.trajectory(sampler, steps).items()}
  assert len(path['time']) == steps and path['time'][0] == target.times[-1]

  def body(x, of_step):
    t, now = of_step
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), t), x.shape)
    outputs = perfect(target, x, now['time'] / flow.SCALE, now)
    return target.denoised(sampler, x, outputs, now, noise), None
  start = jnp.asarray(np.random.default_rng(5).normal(size=(4, 3, 3, 2)), jnp.float32)
  x, _ = jax.jit(functools.partial(jax.lax.scan, body))(start, (jnp.arange(steps), path))
  np.testing.assert_allclose(x, np.broadcast_to(IMAGE, x.shape), atol=2e-3)


def test_all_levels_are_the_process_itself():
  target = TARGETS['ddpm']
  path = target.trajectory('ddpm', 1000)
  np.testing.assert_allclose(path['abar'][::-1], target.process.abar)
  np.testing.assert_allclose(path['largest'][::-1], np.log(np.linspace(1e-4, 0.02, 1000)), rtol=1e-6)
  few = target.trajectory('ddpm', 4)
  np.testing.assert_array_equal(few['time'], [999, 666, 333, 0])
  assert few['before'][-1] == 1 and few['before'][0] == few['abar'][1]


def test_variances_are_between_the_least_and_the_largest():
  v = jnp.array([-1.0, 0.0, 1.0])
  np.testing.assert_allclose(ddpm.interpolated(v, -4.0, -2.0), [-4, -3, -2])
  target = ddpm.Ddpm()
  data = batch([0.01, 0.05])                                         # where both differ enough for float32
  outputs = lambda v: jnp.concatenate([data['noise'], jnp.full_like(data['noise'], v)], axis=-1)
  bits = lambda v: np.asarray(target.each(outputs(v), data)[1])
  np.testing.assert_allclose(bits(-1.0), 0, atol=2e-5)               # the true variance, given the true noise
  assert (bits(1.0) > bits(0.0)).all() and (bits(0.0) > 1e-4).all()


def test_guidance_moves_the_noise_alone():
  with_class, without = jnp.array([[[[3.0, 1.0]]]]), jnp.array([[[[1.0, 5.0]]]])
  np.testing.assert_array_equal(ddpm.Ddpm().guided(with_class, without, 1.5), [[[[4.0, 1.0]]]])
  np.testing.assert_array_equal(flow.Flow().guided(with_class, without, 1.5), [[[[4.0, -1.0]]]])


def test_mistakes_are_one_line():
  with pytest.raises(errors.UserError, match='1001 steps to sample.*1000 levels; nearest: 1000'):
    TARGETS['ddpm'].trajectory('ddpm', 1001)
  with pytest.raises(errors.UserError, match='loss.variance=True.*2 numbers.*nearest: model.variance=True'):
    ddpm.Ddpm().each(jnp.zeros((1, 3, 3, 2)), batch([0.5]))
  with pytest.raises(errors.UserError, match="images without noise; nearest: data.source='diffusion'"):
    flow.Flow().posed(dict(image=IMAGE))
  with pytest.raises(errors.UserError, match='loss.steps=10.*nearest: loss.steps=1000'):
    ddpm.Ddpm(steps=10)
