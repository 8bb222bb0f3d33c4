"""What `tgmm` means: a product for each expert, of all rows, with rows of other experts set to zero."""

import jax
import jax.numpy as jnp


def tgmm(x, dy, sizes):
  """Returns [E,K,N], out[e] = x[rows of e]^T @ dy[rows of e] for x [M,K] and dy [M,N].

  >>> x, dy = jnp.array([[1.], [2.], [jnp.nan]]), jnp.array([[10.], [100.], [jnp.nan]])
  >>> tgmm(x, dy, jnp.array([2, 0])).tolist()
  [[[210.0]], [[0.0]]]
  """
  end = jnp.cumsum(sizes)
  row = jnp.arange(x.shape[0])

  def of_expert(e):
    mine = ((end[e] - sizes[e] <= row) & (row < end[e]))[:, None]
    return jnp.dot(jnp.where(mine, x, 0).T, jnp.where(mine, dy, 0),
                   precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
  return jnp.stack([of_expert(e) for e in range(sizes.size)]).astype(x.dtype)
