"""What a forward keeps: no array twice, and of two forms of a number the one with fewer bytes."""

import collections

import jax
import jax.numpy as jnp

from stmoe.core.units import kept

X = jax.ShapeDtypeStruct((8, 16), 'float32')
W = jax.ShapeDtypeStruct((16, 16), 'float32')


def residuals(f, *inputs, policy='elementwise'):
  """Counter of the dtypes and shapes that `f` keeps beside its inputs, ones of a single number left out."""
  inner = jax.checkpoint(f, policy=kept.POLICIES[policy])
  held = jax.eval_shape(lambda *a: (jax.vjp(inner, *a)[1], a), *inputs)
  count = lambda part: collections.Counter((x.dtype.name, x.shape) for x in jax.tree.leaves(part) if x.shape)
  return count(held[0]) - count(held[1])


def test_shapes_and_scales_are_computed_again():
  layer = lambda x, w: jnp.tanh(2 * x @ w).reshape(4, 32).T * 3
  assert residuals(layer, X, W) == {('float32', (8, 16)): 1}


def test_a_mask_is_kept_and_not_the_numbers_it_was_drawn_from():
  dropout = lambda x: jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, x.shape), jnp.sin(x) ** 2, 0)
  assert residuals(dropout, X)[('bool', X.shape)] == 1
  assert not any(dtype.startswith('uint') for dtype, _ in residuals(dropout, X))


def test_what_is_cast_to_fewer_bytes_is_kept_so():
  half = lambda x, w: jnp.exp(x).astype('bfloat16') @ w.astype('bfloat16')
  assert residuals(half, X, W)[('bfloat16', X.shape)] == 1
