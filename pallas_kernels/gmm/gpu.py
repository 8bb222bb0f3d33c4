"""Grouped matmul on NVIDIA GPUs: by Mosaic GPU on Hopper, where tiles are full, else by Triton."""

from pallas_kernels import hopper
from pallas_kernels import listing
from pallas_kernels.gmm import triton


def gmm(x, w, sizes, token=None, *, transposed=False):
  """Returns [M,N], out[r] = x[r] @ w[e(r)]; see `pallas_kernels.gmm.api`.

  Triton loads rows by the list `token`. Mosaic cannot: for Mosaic rows are gathered where that pays.
  """
  rows, (experts, *_) = listing.rows(x, token), w.shape
  k, n = x.shape[1], w.shape[1 if transposed else 2]
  if hopper.fits(rows, experts, x.dtype, k, n) and (token is None or hopper.pays(n)):
    from pallas_kernels.gmm import mosaic
    return mosaic.gmm(listing.take(x, token), w, sizes, transposed=transposed)
  return triton.gmm(x, w, sizes, token, transposed=transposed)
