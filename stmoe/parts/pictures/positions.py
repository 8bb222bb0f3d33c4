"""Tables of positions of image patches, for images of another size."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def resized(table: jax.Array, length: int, leading: int = 0) -> jax.Array | None:
  """Returns table [1,T,D] of positions for `length` tokens: [1,length,D].

  The positions of the patches are a square grid, which is interpolated linearly along both sides; corners
  stay corners. ViT (arXiv:2010.11929, section 3.2) does so by scipy.ndimage.zoom of order 1, V-MoE alike
  (unverified). The first `leading` positions, of tokens that are no patches, stay as they are. None where one
  of both numbers of patches is no square.
  """
  before, after = (math.isqrt(max(n - leading, 0)) for n in (table.shape[1], length))
  if not before or not after or (before**2, after**2) != (table.shape[1] - leading, length - leading):
    return None
  first, grid = table[:, :leading], table[:, leading:].reshape(before, before, -1)         # [a, a, D]
  share = jnp.asarray(shares(before, after), table.dtype)
  grid = jnp.einsum('ia,jb,abd->ijd', share, share, grid, precision='highest')              # [b, b, D]
  return jnp.concatenate([first, grid.reshape(1, after**2, -1)], axis=1)


def shares(before: int, after: int) -> np.ndarray:
  """Returns f64[after,before], how much of each of `before` places goes to each of `after`; rows sum to 1.

  >>> shares(2, 3).tolist()
  [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
  """
  at = np.linspace(0, before - 1, after)
  return np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(before)))
