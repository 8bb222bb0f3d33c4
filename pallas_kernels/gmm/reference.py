"""What `gmm` means: every row times every matrix, of which one product is kept."""

import jax
import jax.numpy as jnp


def gmm(x, w, sizes, transposed=False):
  """Returns [M,N], out[r] = x[r] @ w[e(r)] for x [M,K] and w [E,K,N]; zero for rows of no expert.

  >>> x, w = jnp.array([[1.], [2.], [jnp.nan]]), jnp.array([[[10.]], [[100.]]])
  >>> gmm(x, w, jnp.array([1, 1])).tolist()
  [[10.0], [200.0], [0.0]]
  """
  if transposed:
    w = w.swapaxes(1, 2)
  end = jnp.cumsum(sizes)
  row = jnp.arange(x.shape[0])
  out = jnp.zeros((x.shape[0], w.shape[2]), jnp.float32)
  for e in range(w.shape[0]):
    mine = (end[e] - sizes[e] <= row) & (row < end[e])
    y = jnp.dot(x, w[e], precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
    out = jnp.where(mine[:, None], y, out)
  return out.astype(x.dtype)
