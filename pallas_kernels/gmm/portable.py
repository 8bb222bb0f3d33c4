"""The grouped matmul on CPUs: a loop over blocks of rows, each block times the matrix of its expert."""

import jax
import jax.numpy as jnp

from pallas_kernels import listing
from pallas_kernels import walk


def gmm(x, w, sizes, token=None, *, transposed=False):
  """Returns out[r] = x[r] w[e(r)]; see `api.gmm`."""
  x = listing.take(x, token)                                         # [M, K]
  cut = walk.blocks(sizes, x.shape[0])
  rows = walk.room(cut, x)                                           # [M+P, K]
  contract = ((1,), (1,)) if transposed else ((1,), (0,))

  def block(i, size):
    mine = jax.lax.dynamic_index_in_dim(w, cut.expert[i], 0, keepdims=False)      # [K, N] or [N, K]
    return walk.whole(cut, jax.lax.dot_general(walk.take(rows, cut.row[i], size), mine, (contract, ((), ())),
                                               preferred_element_type=jnp.float32))        # [top, N]

  out = jnp.zeros((rows.shape[0], w.shape[1 if transposed else 2]), x.dtype)
  return walk.each(cut, block, lambda out, i, y: walk.put(out, y, cut.row[i]), out)[:x.shape[0]]
