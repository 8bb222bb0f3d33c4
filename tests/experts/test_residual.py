"""Residual experts: the sum of what their sublayers add, by hand and in every executor."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import walk
from stmoe import lookup
from stmoe.core import assignment
from stmoe.core.transport import layouts
from stmoe.experts import residual

E, D, F, S = 3, 4, 5, 12


def bank(num_sublayers=2, trained=True):
  """A bank; `trained` gives random values to what begins at zero or one."""
  made = residual.Residual(D, num_experts=E, d_ff=F, num_sublayers=num_sublayers, rngs=nnx.Rngs(0))
  if trained:
    rng = np.random.default_rng(0)
    for sublayer in made.sublayers:
      for name in ('scale', 'bias', 'wo'):
        value = getattr(sublayer, name)
        value[...] = jnp.asarray(rng.normal(size=value.shape), jnp.float32)
  return made


def by_hand(made, e, u):
  """f(u) - u of expert e, u f32[R,D], from the equations of the paper."""
  start = u
  for sublayer in made.sublayers:
    part = lambda name, sublayer=sublayer: np.asarray(getattr(sublayer, name)[e], np.float64)
    normal = (u - u.mean(axis=1, keepdims=True)) / np.sqrt(u.var(axis=1, keepdims=True) + 1e-5)
    h = np.maximum((normal * part('scale') + part('bias')) @ part('wi') + part('bi'), 0)
    u = u + h @ part('wo') + part('bo')
  return u - start


def test_equations():
  made, x = bank(), np.random.default_rng(1).normal(size=(E, 3, D))
  y = jax.jit(lambda made, x: made(layouts.Buckets(x)).x)(made, jnp.asarray(x, jnp.float32))
  for e in range(E):
    np.testing.assert_allclose(y[e], by_hand(made, e, x[e]), rtol=1e-4, atol=1e-5)


def test_begins_as_the_identity_plus_its_last_biases():
  made = bank(trained=False)
  y = made(layouts.Buckets(jnp.ones((E, 2, D)))).x
  expected = sum(sublayer.bo[...] for sublayer in made.sublayers)[:, None]
  np.testing.assert_allclose(y, jnp.broadcast_to(expected, y.shape), rtol=1e-5)
  for name, limit in (('wi', D ** -0.5), ('bi', D ** -0.5), ('bo', F ** -0.5)):
    value = np.asarray(getattr(made.sublayers[0], name)[...])
    assert 0.7 * limit < np.abs(value).max() <= limit and (value[0] != value[1]).all(), name


@pytest.mark.parametrize('executor', ['einsum', 'blocks', 'ragged'])
def test_executors(executor, monkeypatch):
  """Equal values and gradients to gather; rows of other experts, read along, must not count."""
  monkeypatch.setattr(walk, 'sizes', lambda *_: (4,))                         # few to compile
  made, x = bank(1), jnp.asarray(np.random.default_rng(1).normal(size=(1, S, D)), jnp.float32)
  expert = jnp.asarray(np.random.default_rng(0).integers(0, E, size=(1, S, 1)))
  a = assignment.cap(assignment.from_choices(expert, jnp.full((1, S, 1), 0.7), E), S)

  def loss(made, x, name):
    y = lookup.module('executor', name).execute(x, a, made)
    return jnp.sum(y * jnp.cos(jnp.arange(y.size).reshape(y.shape))), y
  run = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True), static_argnums=2)
  for got, want in zip(*(jax.tree.leaves(run(made, x, name)) for name in (executor, 'gather'))):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
