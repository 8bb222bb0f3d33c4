"""Grouped matmul over ragged rows: the gradient of the matrices of `gmm`."""

from pallas_kernels import listing
from pallas_kernels import target as targets


def tgmm(x, dy, sizes, token=None, dy_token=None, *, target=None):
  """Returns [E,K,N], out[e] = x[rows of e]^T @ dy[rows of e], summed in float32, in the dtype of x.

  Expert 0 has the first sizes[0] rows, expert 1 the next sizes[1], and so on; experts without rows get
  zeros. Rows beyond sum(sizes) belong to no expert, and NaN there reaches no result. M, K and N may be any
  sizes. `tgmm` has no derivative.

  Source: the weight gradients of MegaBlocks (Gale et al., 2022, arXiv:2211.15841, section 4), without the
  padding of its groups.

  Args:
    x: [M,K] rows, in float32 or bfloat16; with `token` [T,K], any rows.
    dy: [M,N] rows in the dtype of x; with `dy_token` [T',N], any rows.
    sizes: i32[E] rows of each expert, sum(sizes) <= M.
    token: None, or i32[M] in [0,T): row r is x[token[r]]. GPUs load such rows by the list and never store
      them; TPUs and CPUs gather them first.
    dy_token: the same for dy.
    target: 'cpu', 'tpu', 'gpu', or None: the platform that the program is lowered for.
  Raises:
    ValueError: shapes or dtypes do not fit.
  """
  _check(x, dy, sizes, token, dy_token)
  return targets.choose(target, **targets.modules('pallas_kernels.tgmm'))(x, dy, sizes, token, dy_token)


def _check(x, dy, sizes, token, dy_token):
  targets.check_dtype('x', x)
  listing.check('token', token)
  listing.check('dy_token', dy_token)
  if x.ndim != 2 or dy.ndim != 2 or listing.rows(x, token) != listing.rows(dy, dy_token):
    raise ValueError(f'dy has {listing.rows(dy, dy_token)} rows, x has {listing.rows(x, token)}: '
                     f'x {list(x.shape)}, dy {list(dy.shape)}')
  if dy.dtype != x.dtype:
    raise ValueError(f'dy is {dy.dtype}, x is {x.dtype}: cast one of them')
  if sizes.ndim != 1 or sizes.dtype != 'int32':
    raise ValueError(f'sizes {sizes.dtype}{list(sizes.shape)} is not int32[E], one for each expert')
