"""The transpose of grouped matmul on NVIDIA GPUs: by Mosaic GPU on Hopper, where it fits, else by Triton."""

from pallas_kernels import hopper
from pallas_kernels import listing
from pallas_kernels.tgmm import triton


def tgmm(x, dy, sizes, token=None, dy_token=None):
  """Returns [E,K,N], out[e] = x[rows of e]^T @ dy[rows of e]; see `pallas_kernels.tgmm.api`.

  Triton loads rows by the lists. Mosaic cannot: for Mosaic rows are gathered where that pays.
  """
  rows, k, n = listing.rows(x, token), x.shape[1], dy.shape[1]
  pays = (token is None or hopper.pays(n)) and (dy_token is None or hopper.pays(k))
  if hopper.fits(rows, sizes.size, x.dtype, k, n) and pays:
    from pallas_kernels.tgmm import mosaic
    return mosaic.tgmm(listing.take(x, token), listing.take(dy, dy_token), sizes)
  return triton.tgmm(x, dy, sizes, token, dy_token)
