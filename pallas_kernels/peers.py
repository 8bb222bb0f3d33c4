"""Grouped products of other libraries, for the benchmarks of `gmm` and `tgmm`, where they are installed."""

import functools
import importlib.util

import jax

from pallas_kernels import benchmark


def variants(op):
  """Returns the `benchmark.Variant`s of (x, w or dy, sizes) that compute `op` on this accelerator.

  tokamax chooses its own kernel and tiles; PyTorch calls CUTLASS.
  """
  platform = benchmark.platform()
  installed = lambda name: importlib.util.find_spec(name) is not None
  return [*([_tokamax(op)] if platform != 'cpu' and installed('tokamax') else []),
          *([_torch(op)] if platform == 'gpu' and installed('torch') else [])]


def _tokamax(op):
  import tokamax
  left, right = (1, 2 if op == 'gmm_transposed' else 1) if op != 'tgmm' else (0, 0)
  numbers = jax.lax.RaggedDotDimensionNumbers(
      dot_dimension_numbers=(((left,), (right,)), ((), ())), lhs_ragged_dimensions=[0],
      rhs_group_dimensions=[] if op == 'tgmm' else [0])
  product = functools.partial(tokamax.ragged_dot_general, ragged_dot_dimension_numbers=numbers)
  return benchmark.jitted(f'{op} tokamax', lambda x, other, sizes, *_: product(x, other, group_sizes=sizes))


def _torch(op):
  import torch

  def program(x, right, sizes, *_):
    x, right, sizes = map(torch.from_dlpack, (x, right, sizes))
    end = sizes.cumsum(0, dtype=torch.int32)
    x, right = (x.T, right) if op == 'tgmm' else (x, right.mT if op == 'gmm_transposed' else right)
    return torch.nn.functional.grouped_mm(x, right, offs=end)
  return benchmark.Variant(f'{op} torch', None, lambda _: program, lambda _: torch.cuda.synchronize())
