"""Dot-product attention with heads of a single number, which XLA for CPUs does not compute in bfloat16."""

import jax
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
