"""The gradient of expert weights on CPUs: per expert the sum of products of blocks of rows."""

import jax
import jax.numpy as jnp

from pallas_kernels import walk


def tgmm(x, dy, sizes):
  """Returns out[e] = x[rows of e]^T dy[rows of e]; see `api.tgmm`."""
  cuts = walk.sizes(x.shape[0])
  start = jnp.cumsum(sizes) - sizes                                  # [E]
  experts, number = walk.busy(sizes)
  x, dy = walk.padded(x), walk.padded(dy)                            # [M+P, K], [M+P, N]

  def expert(i, out):
    e = experts[i]
    end = start[e] + sizes[e]

    def block(row, size, total):
      mine = (row + jnp.arange(size) < end)[:, None]                 # the rest is of the next expert
      left, right = (jnp.where(mine, walk.take(v, row, size), 0) for v in (x, dy))
      return total + jax.lax.dot_general(left, right, (((0,), (0,)), ((), ())),
                                         preferred_element_type=jnp.float32)
    total = jnp.zeros(out.shape[1:], jnp.float32)                    # [K, N]
    return walk.put(out, walk.blocks(cuts, start[e], sizes[e], block, total)[None], e)

  out = jnp.zeros((sizes.shape[0], x.shape[1], dy.shape[1]), x.dtype)
  return jax.lax.fori_loop(0, number, expert, out)
