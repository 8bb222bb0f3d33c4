"""Samples: known images come back, whatever the batches; distances of Gaussians; grids."""

import types

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from stmoe import axes
from stmoe.answer import samples
from stmoe.core import contract
from stmoe.targets import flow

CONFIG = ml_collections.ConfigDict(dict(model=dict(image_size=4, channels=1, vocab_size=3)))


def constant(params, routers):
  """A model that knows that the image of class n is n everywhere, and 9 without a class."""
  def model(batch, train):
    label, time = batch['given/label'], batch['given/time']
    known = jnp.where(label < 0, 9.0, label)[:, None, None, None]
    load = jnp.stack([jnp.sum(time > 500), jnp.sum(batch['weights'])]).astype(jnp.float32)
    return (batch['image'] - known) / (time[:, None, None, None] / 1000), {
        'encoder_00': contract.Aux(losses={}, load=load, metrics={})}
  return model


def test_a_sample_is_its_own_in_any_batch():
  mesh = axes.make_mesh(data=8)
  target, label = flow.Flow(), np.array([0, 1, 2, 0, 1], np.int32)
  plan = types.SimpleNamespace(target=target, mesh=mesh, model=constant)
  with jax.set_mesh(mesh):
    run = samples.make(plan, CONFIG, 'euler', target.trajectory('euler', 4), 1.0, seed=3)
    whole, load = run({}, {}, *samples._batch(mesh, label, 0, 8))
    np.testing.assert_allclose(whole[:5], label[:, None, None, None] + np.zeros((5, 4, 4, 1)), atol=1e-5)
    # At times 1000, 750, 500 and 250.
    np.testing.assert_array_equal(load['encoder_00'], [[8, 5], [8, 5], [0, 5], [0, 5]])
    # A model that predicts nothing leaves the noise, which is that of the sample's number.
    plan.model = lambda params, routers: lambda batch, train: (0 * batch['image'], {})
    run = samples.make(plan, CONFIG, 'euler', target.trajectory('euler', 2), 1.0, seed=3)
    first = run({}, {}, *samples._batch(mesh, label, 0, 8))[0]
    later = run({}, {}, *samples._batch(mesh, label[2:], 2, 8))[0]
    np.testing.assert_allclose(later[:3], first[2:5], rtol=1e-6)
    assert len(np.unique(np.asarray(first[:, 0, 0, 0]))) == 8


def test_guidance_goes_beyond_the_class():
  mesh = axes.make_mesh(devices=jax.devices()[:1])
  plan = types.SimpleNamespace(target=flow.Flow(), mesh=mesh, model=constant)
  with jax.set_mesh(mesh):
    run = samples.make(plan, CONFIG, 'euler', plan.target.trajectory('euler', 1), 2.0, seed=0)
    images, _ = run({}, {}, *samples._batch(mesh, np.array([1], np.int32), 0, 1))
  np.testing.assert_allclose(images, 9 + 2 * (1 - 9), atol=1e-5)     # u + s (c - u)


def test_distance_of_gaussians():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(400, 3)) @ np.diag([1.0, 2.0, 3.0])
  assert samples.frechet(x, x) == pytest.approx(0, abs=1e-9)
  assert samples.frechet(x, x + [1, 0, 2]) == pytest.approx(5)
  variances = x.var(axis=0)
  moved = (x - x.mean(0)) * 2 + x.mean(0)                            # the same covariance, four times
  assert samples.frechet(x, moved) == pytest.approx(variances.sum(), rel=1e-6)


def test_grid_has_every_image_once():
  images = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
  grid = samples.grid(images, least=4)
  assert grid.shape == (2 * 6, 3 * 6, 1)
  assert [int(grid[6 * (n // 3) + 2, 6 * (n % 3) + 2, 0]) for n in range(5)] == [1, 2, 3, 4, 5]
  assert (grid == 255).sum() == 5 * (36 - 16) + 36
