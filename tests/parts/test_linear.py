"""The product of tokens with a matrix: its values, and what its gradients compile to."""

import re

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from stmoe import axes
from stmoe.parts import linear

X = jax.random.normal(jax.random.key(0), (8, 16, 32))
W, B = jax.random.normal(jax.random.key(1), (32, 64)), jnp.arange(64.0)


def step(x, w):
  """Gradients of a loss whose cotangent is not constant."""
  return jax.grad(lambda x, w: jnp.sum(jnp.sin(linear.apply(x, w, B))), (0, 1))(x, w)


@pytest.mark.parametrize('shape', [(32,), (8, 32), (8, 16, 32), (2, 4, 16, 32)])
def test_any_number_of_axes_of_tokens(shape):
  x = jnp.resize(X, shape)
  np.testing.assert_allclose(linear.apply(x, W, B), np.asarray(x) @ W + B, rtol=1e-5, atol=1e-5)


def test_the_cotangent_is_not_transposed():
  text = jax.jit(step).lower(X, W).compile().as_text()
  assert re.search(r'f32\[32,64\]\S* dot\(.*lhs_contracting_dims=\{0\}, rhs_contracting_dims=\{0\}', text)


def test_a_length_that_devices_share_is_not_gathered():
  with axes.use(axes.make_mesh(data=2, model=4), axes.rules('length=model')) as mesh:
    x = jax.device_put(X, NamedSharding(mesh, PartitionSpec('data', 'model')))
    text = jax.jit(step, out_shardings=(x.sharding, None)).lower(x, W).compile().as_text()
  assert 'all-gather' not in text and 'all-to-all' not in text
