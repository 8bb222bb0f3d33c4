"""What kernels are compared with: their reference on the same numbers, in float32."""

import jax
import jax.numpy as jnp
import numpy as np


def normal(seed, shape, dtype='float32'):
  """Returns normal numbers of `shape` in `dtype`, the same for the same seed."""
  return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def beyond(x, first):
  """Returns x with NaN in the rows from `first` on: they belong to nobody."""
  return x.at[first:].set(jnp.nan)


def close(got, want, rows=None):
  """Raises unless `got` is `want`, a float32 result, rounded to the dtype of `got`; of the first `rows`.

  float32 may be off by 1e-5 of the largest entry: sums are in another order. bfloat16 keeps 8 bits.
  """
  ulp = 2 ** -8 if got.dtype == jnp.bfloat16 else 0
  assert want.dtype == jnp.float32 and got.shape == want.shape
  got, want = np.asarray(got, np.float32)[:rows], np.asarray(want)[:rows]
  np.testing.assert_allclose(got, want, rtol=ulp, atol=1e-5 * np.abs(want).max(initial=0))
