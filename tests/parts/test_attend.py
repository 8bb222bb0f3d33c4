"""Dot-product attention: JAX's own numbers and gradients, without what lies above the diagonal.

Heads of a single number XLA for CPUs does not compute in bfloat16.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe.parts import attend


@pytest.mark.parametrize('dtype, tolerance', [('float32', 1e-5), ('bfloat16', 2e-2)])
def test_heads_of_one_number(dtype, tolerance):
  q, k, v = (jax.random.normal(jax.random.key(i), (16, 17, 2, 1), dtype) for i in range(3))
  y = jax.jit(lambda *a: attend.attend(*a, mask=None, bias=None, scale=0.5))(q, k, v)
  q, k, v = (np.asarray(a, np.float64)[..., 0].transpose(0, 2, 1) for a in (q, k, v))        # [B, H, T]
  weights = np.exp(0.5 * q[..., None] * k[..., None, :])                                     # [B, H, T, K]
  want = np.einsum('bhts,bhs->bth', weights / weights.sum(-1, keepdims=True), v)
  assert y.dtype == dtype
  np.testing.assert_allclose(np.asarray(y, np.float64)[..., 0], want, atol=tolerance)


def inputs(length, heads=4, kv_heads=2, dtype='float32'):
  """q, k, v, mask [2,1,T,T] of packed rows, bias [1,H,T,T]."""
  draw = lambda seed, count: jax.random.normal(jax.random.key(seed), (2, length, count, 8), dtype)
  segments = jnp.asarray(np.random.default_rng(0).integers(1, 3, (2, length)).cumsum(1) // length)
  seen = jnp.tril(jnp.ones((length, length), bool)) & (segments[:, :, None] == segments[:, None])
  bias = jax.random.normal(jax.random.key(3), (1, heads, length, length))
  return draw(0, heads), draw(1, kv_heads), draw(2, kv_heads), seen[:, None], bias


@pytest.mark.parametrize('dtype, tolerance', [('float32', 1e-5), ('bfloat16', 2e-2), ('float16', 2e-3)])
@pytest.mark.parametrize('length', [5, 128, 258])
def test_output_and_gradients_are_those_of_jax(length, dtype, tolerance):
  q, k, v, mask, bias = inputs(length, dtype=dtype)
  weight = jax.random.normal(jax.random.key(4), q.shape)

  def with_gradients(f):
    loss = lambda *a: (f(*a).astype('float32') * weight).sum()
    return jax.jit(lambda *a: (f(*a), jax.grad(loss, (0, 1, 2, 3))(*a)))(q, k, v, bias)

  got = with_gradients(lambda q, k, v, bias: attend.attend(
      q, k, v, mask=mask, bias=bias, scale=0.3, causal=True))
  want = with_gradients(lambda q, k, v, bias: jax.nn.dot_product_attention(
      *(a.astype('float32') for a in (q, k, v)), mask=mask, bias=bias, scale=0.3))
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    assert np.linalg.norm(np.asarray(a, 'float32') - b) <= tolerance * np.linalg.norm(b)


def test_blocks_leave_out_what_is_above_the_diagonal():
  q, k, v, mask, _ = inputs(256)
  cost = lambda causal: jax.jit(lambda *a: attend.attend(
      *a, mask=mask, bias=None, scale=1.0, causal=causal)).lower(q, k, v).compile().cost_analysis()['flops']
  assert cost(True) < 0.7 * cost(False)
