"""Weights of eight bits with a scale for every block of rows and columns (the release of DeepSeek-V3).

`X` [N,M] is float8_e4m3fn, `X_scale_inv` [ceil(N/R),ceil(M/C)] has the factors of its blocks of R x C. The
weight is their product in float32. What is computed of weights is not rounded here, as it is there.
"""

import dataclasses

import ml_dtypes
import numpy as np

from stmoe import errors
from stmoe import ranges
from stmoe.interop import fields
from stmoe.interop import tensors as files

PACKED, SCALES = 'F8_E4M3', '_scale_inv'
KIND = None                              # such tensors are not written
NUMBERS = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
FIELDS = {'quant_method', 'weight_block_size', 'activation_scheme', 'fmt', 'scale_fmt',
          'modules_to_not_convert', 'ignored_layers'}                # the last two: the tensors say it, too


@dataclasses.dataclass(frozen=True)
class Scaled(files.Rows):
  """The weight [N,M] in float32 of `packed` and its `scales`; `block` is (R, C)."""
  packed: files.Tensor
  scales: files.Tensor
  block: tuple
  dtype = 'F32'

  @property
  def file(self):
    return self.packed.file

  @property
  def shape(self):
    return self.packed.shape

  @property
  def size(self):
    return 4 * self.packed.size

  def read(self, first=0, last=None):
    """Returns rows `first` to `last` as f32 [last - first, M]."""
    last, (high, wide) = self.shape[0] if last is None else last, self.block
    x = NUMBERS[self.packed.read(first, last).view(np.uint8)]
    below = first // high
    scales = self.scales.read(below, -(-last // high)).astype(np.float32)
    for number, row in enumerate(scales, below):
      rows = slice(max(number * high - first, 0), (number + 1) * high - first)
      x[rows] *= np.repeat(row, wide)[:self.shape[1]]
    return x


def unpacked(tensors, section):
  """Returns `tensors` with Scaled ones in place of weights and their scales.

  Raises UserError for scales that are missing or do not fit, and for fields of another form of eight bits.
  """
  unknown = sorted(set(section) - FIELDS)
  if unknown:
    raise errors.UserError(f'config.json: quantization_config.{unknown[0]}={section[unknown[0]]!r:.60} is '
                           f'not supported{errors.nearest(unknown[0], FIELDS)}')
  fields.only(section, fmt='e4m3', activation_scheme='dynamic', scale_fmt='ue8m0')
  block = fields.need(section, 'weight_block_size', ranges.Many(ranges.Count))
  if len(block) != 2:
    raise errors.UserError(f'config.json: weight_block_size={block!r:.60}: expected rows and columns of a '
                           'block; nearest: [128, 128]')
  found, used = {}, set()
  for name, tensor in tensors.items():
    if tensor.dtype == PACKED:
      found[name] = Scaled(tensor, _scales(tensors, name, tensor, block), tuple(block))
      used.add(name + SCALES)
  return {name: tensor for name, tensor in tensors.items() if name not in used} | found


def _scales(tensors, name, tensor, block):
  """The scales of a packed tensor, of the right shape."""
  scales = tensors.get(name + SCALES)
  if scales is None:
    raise errors.UserError(f'{tensor.file}: {name} is {PACKED}, and {name}{SCALES} is missing')
  wanted = tuple(-(-size // part) for size, part in zip(tensor.shape, block))
  if len(tensor.shape) != 2 or scales.shape != wanted or scales.dtype not in ('F32', 'BF16'):
    raise errors.UserError(f'{scales.file}: {name}{SCALES} is {list(scales.shape)} of {scales.dtype}, '
                           f'not {list(wanted)} of F32: {name} is {list(tensor.shape)} in blocks of {block}')
  return scales
