"""What `combine` means."""

import jax.numpy as jnp


def combine(rows, at, weight=None):
  """Returns [T,D], y[t] = sum_j weight[t,j] * rows[at[t,j]] for rows [M,D] and at i32[T,k], -1 for none.

  >>> combine(jnp.array([[1.], [2.], [jnp.nan]]), jnp.array([[1, 0], [0, -1]])).tolist()
  [[3.0], [1.0]]
  """
  has_row = at >= 0                                                  # [T, k]
  picked = rows[jnp.where(has_row, at, 0)].astype(jnp.float32)       # [T, k, D]
  weight = jnp.ones(at.shape) if weight is None else weight
  return jnp.where(has_row[..., None], picked * weight[..., None], 0).sum(1).astype(rows.dtype)
