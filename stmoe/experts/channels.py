"""A bank of convolutions of whole images: an expert is a group of output channels (AdvMoE)."""

import functools

from flax import nnx
import jax

from stmoe import axes
from stmoe import ranges
from stmoe.core import contract
from stmoe.errors import UserError


def convolved(rows: jax.Array, w: jax.Array, side: int, stride: int) -> jax.Array:
  """Returns rows [R,H'W'F], images in rows [R,HHC] convolved with w [k,k,C,F]; H = `side`, H' = H / stride.

  (k - 1) / 2 zeros are put on each side, whatever the stride is.
  """
  around = (w.shape[0] - 1) // 2
  images = rows.reshape(len(rows), side, side, -1)
  y = jax.lax.conv_general_dilated(images, w, (stride, stride), [(around, around)] * 2,
                                   dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  return y.reshape(len(rows), -1)


class Channels(nnx.Module):
  """E convolutions without a bias; a row is an image, its pixels one after the other (arXiv:2308.10110).

  Args:
    d_model: D = side^2 C, all numbers of an image.
    side:    H and W of an image.
    width:   F, channels that come out; None = C.
    size:    k, an odd number.
    stride: steps of the window.
    init_scale: initial values are N(0, init_scale / (k^2 E F)): the paper's 2, of the experts together.
  """

  def __init__(self, d_model: int, *, num_experts, side: ranges.Count = 1, width: ranges.Count | None = None,
               size: ranges.Count = 3, stride: ranges.Count = 1, init_scale: ranges.Positive = 2.0, rngs):
    channels, rest = divmod(d_model, side * side)
    if rest or size % 2 == 0:
      raise UserError(f'experts channels: rows of {d_model} numbers, side={side} and size={size}; rows are '
                      'side x side pixels, and windows have an odd size; nearest: size=3')
    width = width or channels
    init = nnx.initializers.normal((init_scale / (size * size * num_experts * width)) ** 0.5)
    self.w = axes.param(init, (num_experts, size, size, channels, width), 'expert', *['unmodeled'] * 4,
                        rngs=rngs)
    self.side, self.stride = side, stride
    self.products_per_row = size * size * channels * width
    self.rows_per_sequence = (-(-side // stride)) ** 2               # pixels that come out of an image

  def __call__(self, rows: contract.Rows, key: jax.Array | None = None) -> contract.Rows:
    """Returns the rows' expert outputs: [.,D] -> [.,H'W'F] in the same layout."""
    one = functools.partial(convolved, side=self.side, stride=self.stride)
    return rows.each(lambda x, w: one(x, w.astype(x.dtype)), self.w[...])
