"""Grouped matmul: rows sorted by expert, each times the matrix of its expert."""

from pallas_kernels import listing
from pallas_kernels import target as targets


def gmm(x, w, sizes, token=None, *, transposed=False, target=None):
  """Returns [M,N], out[r] = x[r] @ w[e(r)], accumulated in float32, in the dtype of x.

  Expert 0 has the first sizes[0] rows, expert 1 the next sizes[1], and so on. Rows beyond sum(sizes) belong
  to no expert: their results are unspecified, and NaN there reaches no other row. M, K and N may be any
  sizes. `gmm` has no derivative: give it one with `gmm` (transposed the other way) and `tgmm`.

  Source: the grouped matrix product of MegaBlocks (Gale et al., 2022, arXiv:2211.15841, section 4), without
  the padding of its groups.

  Args:
    x: [M,K] rows, in float32 or bfloat16; with `token` [T,K], any rows.
    w: [E,K,N] matrices in the dtype of x; with `transposed` [E,N,K], read so, never transposed in memory.
    sizes: i32[E] rows of each expert, sum(sizes) <= M.
    token: None, or i32[M] in [0,T): row r of the product is made of x[token[r]]. GPUs load such rows by the
      list and never store them; TPUs and CPUs gather them first.
    transposed: whether the last axis of w is summed over.
    target: 'cpu', 'tpu', 'gpu', or None: the platform that the program is lowered for.
  Raises:
    ValueError: shapes or dtypes do not fit.
  """
  _check(x, w, sizes, token, transposed)
  kernels = targets.modules('pallas_kernels.gmm', transposed=transposed)
  return targets.choose(target, **kernels)(x, w, sizes, token)


def _check(x, w, sizes, token, transposed):
  if x.ndim != 2 or w.ndim != 3 or w.shape[2 if transposed else 1] != x.shape[1]:
    want = '[E,N,K]' if transposed else '[E,K,N]'
    raise ValueError(f'w {list(w.shape)} is not {want} for x [M,K] {list(x.shape)}')
  if w.dtype != x.dtype:
    raise ValueError(f'w is {w.dtype}, x is {x.dtype}: cast one of them')
  if sizes.shape != w.shape[:1] or sizes.dtype != 'int32':
    raise ValueError(f'sizes {sizes.dtype}{list(sizes.shape)} is not int32[{w.shape[0]}], one per expert')
  targets.check_dtype('x', x)
  listing.check('token', token)
