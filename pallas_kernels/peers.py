"""Grouped products of other libraries, for the benchmarks of `gmm` and `tgmm`, where they are installed."""

import functools
import importlib.util

import jax

from pallas_kernels import benchmark


def variants(op):
  """Returns the `benchmark.Variant`s of (x, w or dy, sizes) that compute `op` on this accelerator.

  tokamax chooses its own kernel and tiles; PyTorch calls CUTLASS.
  """
  here = benchmark.platform()
  found = lambda name: importlib.util.find_spec(name) is not None
  return [*([_tokamax(op)] if here != 'cpu' and found('tokamax') else []),
          *([_torch(op)] if here == 'gpu' and found('torch') else [])]


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

  def program(x, other, sizes, *_):
    x, other, sizes = map(torch.from_dlpack, (x, other, sizes))
    end = sizes.cumsum(0, dtype=torch.int32)
    x, other = (x.T, other) if op == 'tgmm' else (x, other.mT if op == 'gmm_transposed' else other)
    return torch.nn.functional.grouped_mm(x, other, offs=end)
  return benchmark.Variant(f'{op} torch', None, lambda _: program, lambda _: torch.cuda.synchronize())
