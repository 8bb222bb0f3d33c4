"""The gradient of expert weights on CPUs: a loop over blocks of rows, each for its expert."""

import jax
import jax.numpy as jnp

from pallas_kernels import listing
from pallas_kernels import walk


def tgmm(x, dy, sizes, token=None, dy_token=None):
  """Returns out[e] = x[rows of e]^T dy[rows of e]; see `api.tgmm`."""
  x, dy = listing.take(x, token), listing.take(dy, dy_token)         # [M, K], [M, N]
  cut = walk.blocks(sizes, x.shape[0])
  x, dy = walk.room(cut, x), walk.room(cut, dy)                      # [M+P, K], [M+P, N]

  def block(i, size):
    mine = (jnp.arange(size) < cut.count[i])[:, None]                # the rest is of the next expert
    left, right = (jnp.where(mine, walk.take(v, cut.row[i], size), 0) for v in (x, dy))
    return jax.lax.dot_general(left, right, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)

  out = jnp.zeros((sizes.shape[0], x.shape[1], dy.shape[1]), jnp.float32)
  return walk.each(cut, block, lambda out, i, dw: walk.add(out, dw, cut.expert[i]), out).astype(x.dtype)
