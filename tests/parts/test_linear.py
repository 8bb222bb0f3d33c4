"""The product of tokens with a matrix: its values, and what its gradients compile to."""

import re

from flax import nnx
import jax
from jax.extend import core
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from stmoe import axes
from stmoe.parts import embed
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


def products(jaxpr):
  """Yields the dtypes (left, right, result) of every product."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      yield tuple(str(v.aval.dtype) for v in (*eqn.invars, *eqn.outvars))
    for inner in core.jaxprs_in_params(eqn.params):
      yield from products(getattr(inner, 'jaxpr', inner))


def heads():
  """Loss and gradients to x [8,16,32] and the parameters of a tied head and of one with a bias."""
  tied, own = embed.Embed(64, 32, rngs=nnx.Rngs(0)), embed.Head(32, 64, use_bias=True, rngs=nnx.Rngs(1))
  loss = lambda head: lambda x, part: jnp.mean(jax.nn.logsumexp(head(part)(x), axis=-1) ** 2)
  return [(jax.value_and_grad(loss(head), (0, 1)), part) for head, part in (
      (lambda part: part.logits, tied), (lambda part: part, own))]


@pytest.mark.parametrize('number', [0, 1], ids=['tied', 'own'])
def test_a_head_multiplies_in_the_dtype_of_its_rows(number):
  """Against the head in float32, within what rounding to bfloat16 does; a float32 model has that head."""
  step, part = heads()[number]
  x = X.astype(jnp.bfloat16)
  found = list(products(jax.make_jaxpr(step)(x, part).jaxpr))
  assert len(found) == 3 and all(dtypes[:2] == ('bfloat16', 'bfloat16') for dtypes in found)
  assert sorted(dtypes[2] for dtypes in found) == ['bfloat16', 'float32', 'float32']
  (loss, got), (exact, want) = step(x, part), step(x.astype(jnp.float32), part)
  np.testing.assert_allclose(loss, exact, rtol=2 ** -8)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert jnp.linalg.norm(a.astype(jnp.float32) - b) < 2 ** -7 * jnp.linalg.norm(b)
  assert got[0].dtype == jnp.bfloat16 and all(a.dtype == jnp.float32 for a in jax.tree.leaves(got[1]))


def test_a_head_of_float32_rows_is_the_plain_product():
  np.testing.assert_array_equal(linear.logits(X, W, B), linear.apply(X, W, B))
  text = str(jax.make_jaxpr(jax.grad(lambda x: jnp.sum(linear.logits(x, W))))(X))
  assert text == str(jax.make_jaxpr(jax.grad(lambda x: jnp.sum(linear.apply(x, W))))(X))


def test_a_length_that_devices_share_is_not_gathered_by_a_head():
  with axes.use(axes.make_mesh(data=2, model=4), axes.rules('length=model')) as mesh:
    x = jax.device_put(X.astype(jnp.bfloat16), NamedSharding(mesh, PartitionSpec('data', 'model')))
    both = jax.jit(jax.grad(lambda x, w: jnp.sum(jnp.sin(linear.logits(x, w, B))), (0, 1)),
                   out_shardings=(x.sharding, None))
    text = both.lower(x, W).compile().as_text()
    dx, dw = both(x, W)
  assert 'all-gather' not in text and 'all-to-all' not in text
  want = jax.grad(lambda x, w: jnp.sum(jnp.sin(linear.logits(x, w, B))), (0, 1))(X.astype(jnp.bfloat16), W)
  np.testing.assert_allclose(dw, want[1], rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(dx, want[0])
