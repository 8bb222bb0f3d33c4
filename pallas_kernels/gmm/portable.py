"""The grouped matmul on CPUs: a loop over the experts that have rows, of products of blocks of rows."""

import jax
import jax.numpy as jnp

from pallas_kernels import walk


def gmm(x, w, sizes, transposed=False):
  """Returns out[r] = x[r] w[e(r)]; see `api.gmm`."""
  cuts = walk.sizes(x.shape[0])
  start = jnp.cumsum(sizes) - sizes                                  # [E]
  experts, number = walk.busy(sizes)
  rows = walk.padded(x)                                              # [M+P, K]
  contract = ((1,), (1,)) if transposed else ((1,), (0,))

  def expert(i, out):
    e = experts[i]
    mine = jax.lax.dynamic_index_in_dim(w, e, 0, keepdims=False)     # [K, N] or [N, K]

    def block(row, size, out):
      y = jax.lax.dot_general(walk.take(rows, row, size), mine, (contract, ((), ())),
                              preferred_element_type=jnp.float32)    # [B, N]
      # It may reach into the rows of the next expert, which come later and overwrite it.
      return walk.put(out, y, row)
    return walk.blocks(cuts, start[e], sizes[e], block, out)

  out = jnp.zeros((rows.shape[0], w.shape[1 if transposed else 2]), x.dtype)
  return jax.lax.fori_loop(0, number, expert, out)[:x.shape[0]]
