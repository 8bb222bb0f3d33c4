"""Gather and sum: the rows of each token's choices, weighted and added up."""

from pallas_kernels import target as targets


def combine(rows, at, weight=None, *, target=None):
  """Returns [T,D], y[t] = sum_j weight[t,j] * rows[at[t,j]], summed in float32, in the dtype of rows.

  A choice without a row has at = -1; its weight may be NaN. Rows that no choice points to may be NaN. Tokens
  without any row get zeros. `combine` has no derivative.

  Source: the gather-and-sum aggregation of SonicMoE (Guo et al., 2025, arXiv:2512.14080). It writes the
  experts' rows in order and lets every token collect its own, instead of adding them in place.

  Args:
    rows: [M,D], in float32 or bfloat16.
    at: i32[T,k] row of each choice, in [0,M), or -1.
    weight: f32[T,k], or None: every choice counts once.
    target: 'cpu', 'tpu', 'gpu', or None: the platform that the program is lowered for.
  Raises:
    ValueError: shapes or dtypes do not fit.
  """
  _check(rows, at, weight)
  return targets.choose(target, **targets.modules('pallas_kernels.combine'))(rows, at, weight)


def _check(rows, at, weight):
  if rows.ndim != 2:
    raise ValueError(f'rows {list(rows.shape)} is not [M,D]')
  targets.check_dtype('rows', rows)
  if at.ndim != 2 or at.dtype != 'int32':
    raise ValueError(f'at {at.dtype}{list(at.shape)} is not int32[T,k]')
  if weight is not None and (weight.shape != at.shape or weight.dtype != 'float32'):
    raise ValueError(f'weight {weight.dtype}{list(weight.shape)} is not float32{list(at.shape)} like at')
