"""Tensors in MXFP4: 32 numbers of four bits share a scale (OCP Microscaling Formats 1.0, 2023, section 5.3).

Of a tensor NAME [...,in,out] a checkpoint has NAME_blocks u8[...,out,in/32,16] and NAME_scales
u8[...,out,in/32]. A byte holds two numbers, the first in its low half. Four bits are a sign and one of
MAGNITUDES; a block is multiplied by 2^(scale - 127). So 4.25 bits are stored a number.

Numbers that came packed are packed into the same bytes again. Most have several forms: 2 times 1 is 1 times
2. So the scales that came are remembered. A block has its remembered scale wherever that gives exactly its
numbers, else the scale by which its largest number is 4 to 8.
"""

import dataclasses
import threading
import typing

import numpy as np

from stmoe import errors
from stmoe import ranges
from stmoe.interop import fields
from stmoe.interop import tensors as files

KIND = 'MXFP4'                           # among the dtypes of tensors
BLOCKS, SCALES = '_blocks', '_scales'    # ends of the names of the two tensors
SIZE, BIAS = 32, 127                     # numbers of a block; what a scale is counted from
MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
VALUES = np.concatenate([MAGNITUDES, -MAGNITUDES])                   # of four bits
FIELDS = {'quant_method', 'modules_to_not_convert', 'dequantize'}    # the tensors say what is packed
BETWEEN = threading.Lock()               # nobody else writes between reading blocks and writing them
# Above the middle of two neighbours comes the upper one; at it the one with an even code.
MIDDLES = np.array([n if i % 2 == 0 else np.nextafter(n, np.float32(0))
                    for i, n in enumerate((MAGNITUDES[1:] + MAGNITUDES[:-1]) / 2)], np.float32)


def numbers(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
  """Returns the numbers f32[...,32 n] of blocks u8[...,n,16] with scales u8[...,n].

  >>> numbers(np.full((1, 16), 0x94, np.uint8), np.array([128], np.uint8))[:4].tolist()
  [4.0, -1.0, 4.0, -1.0]
  """
  pairs = np.empty((*blocks.shape, 2), np.float32)
  pairs[..., 0], pairs[..., 1] = VALUES[blocks & 15], VALUES[blocks >> 4]
  powers = scales.astype(np.int32)[..., None, None] - BIAS
  return np.ldexp(pairs, powers).reshape(*scales.shape[:-1], -1)


def packed(x: np.ndarray, remembered: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
  """Returns (blocks u8[...,n,16], scales u8[...,n]) of numbers f32[...,32 n], rounded to the nearest.

  A number beyond 6 times the scale of its block becomes that.

  Args:
    remembered: u8[...,n] scales to keep in the blocks whose numbers they give exactly.
  """
  x = x.reshape(*x.shape[:-1], -1, SIZE)                             # [..., n, 32]
  largest = np.abs(x).max(axis=-1)                                   # [..., n]
  _, power = np.frexp(largest)                                       # 3 for numbers of 4 to 8
  scales = np.where(largest > 0, np.clip(power - 3 + BIAS, 0, 254), BIAS).astype(np.uint8)
  if remembered is not None:
    fits = (numbers(_blocks(x, remembered), remembered).reshape(x.shape) == x).all(axis=-1)
    scales = np.where(fits, remembered, scales)
  return _blocks(x, scales), scales


def _blocks(x, scales):
  """u8[...,n,16] of numbers f32[...,n,32] with their scales u8[...,n]."""
  scaled = np.ldexp(x, BIAS - scales.astype(np.int32)[..., None])
  codes = np.searchsorted(MIDDLES, np.abs(scaled)).astype(np.uint8) | np.signbit(x).astype(np.uint8) << 3
  return codes[..., ::2] | codes[..., 1::2] << 4


@dataclasses.dataclass(frozen=True)
class Packed(files.Rows):
  """A tensor [...,in,out] of two tensors, read and written as f32.

  codes, scales: the two tensors; remembered: the scales that came, or None.
  """
  codes: typing.Any
  scales: typing.Any
  remembered: typing.Any = None
  dtype = KIND

  @property
  def file(self):
    return self.codes.file

  @property
  def size(self):
    return self.codes.size + self.scales.size

  @property
  def shape(self):
    *lead, out, number, _ = self.codes.shape
    return (*lead, SIZE * number, out)

  def part(self, cut):
    """Returns the part `cut`, numbers of leading axes and slices of [in,out], as a tensor of its own."""
    lead = tuple(at for at in cut if isinstance(at, int))
    inward, *outward = cut[len(lead):] or [slice(None)]
    assert len(range(self.shape[-2])[inward]) == self.shape[-2]      # blocks are not divided
    one = lambda tensor: tensor and tensor.part((*lead, *outward))
    return Packed(one(self.codes), one(self.scales), one(self.remembered))

  def read(self, first=0, last=None):
    """Returns rows `first` to `last` of a tensor [in,out], f32; all of them by default."""
    last = self.shape[0] if last is None else last
    at = slice(first // SIZE, -(-last // SIZE))
    x = numbers(self.codes.read()[:, at], self.scales.read()[:, at])             # [out, in]
    if not np.isfinite(x).all():
      raise errors.Damaged(self.file, 'has scales of MXFP4 with which numbers are not finite')
    return x.T[first % SIZE:first % SIZE + last - first]

  def write(self, first, rows):
    """Writes `rows` of a tensor [in,out], whole blocks, from row `first` on."""
    assert first % SIZE == 0 and len(rows) % SIZE == 0
    x = np.ascontiguousarray(rows.T, np.float32)                     # [out, in]
    if not np.isfinite(x).all():
      raise errors.UserError(f'{self.file.name}: a number is not finite, and {KIND} has only finite ones; '
                             'nearest: BF16')
    at = slice(first // SIZE, (first + len(rows)) // SIZE)
    remembered = None if self.remembered is None else self.remembered.read()[:, at]
    for tensor, new in zip((self.codes, self.scales), packed(x, remembered)):
      if len(rows) == self.shape[0]:
        tensor.write(0, new)
        continue
      with BETWEEN:
        known = np.array(tensor.read())
        known[:, at] = new
        tensor.write(0, known)


def unpacked(tensors, section):
  """Returns `tensors` with Packed ones in place of blocks and their scales.

  Raises UserError for fields of quantization_config that MXFP4 does not have.
  """
  unknown = sorted(set(section) - FIELDS)
  if unknown:
    raise errors.UserError(f'config.json: quantization_config.{unknown[0]}={section[unknown[0]]!r:.60} is '
                           f'not supported{errors.nearest(unknown[0], FIELDS)}')
  fields.given(section, 'modules_to_not_convert', ranges.Many(ranges.Text))
  return joined(tensors)


def joined(tensors, remembered=None):
  """Returns dict name -> tensor with a Packed in place of every two tensors that are one.

  Args:
    tensors:    dict name -> Tensor.
    remembered: dict name -> Tensor of scales that came; None = none.
  """
  of = lambda name, end: tensors.get(f'{name}{end}')
  names = [name.removesuffix(BLOCKS) for name in tensors if name.endswith(BLOCKS)]
  pairs = {name: Packed(of(name, BLOCKS), of(name, SCALES), (remembered or {}).get(f'{name}{SCALES}'))
           for name in names if _fit(of(name, BLOCKS), of(name, SCALES))}
  parts = {f'{name}{end}' for name in pairs for end in (BLOCKS, SCALES)}
  return {name: tensor for name, tensor in tensors.items() if name not in parts} | pairs


def _fit(blocks, scales):
  return (scales is not None and blocks.dtype == scales.dtype == 'U8' and len(blocks.shape) > 2
          and blocks.shape == (*scales.shape, SIZE // 2))


def layout(named):
  """Returns `named`, a dict name -> (dtype, shape), with two tensors in place of every one of MXFP4.

  Raises UserError for a tensor whose rows are no whole blocks.
  """
  stored = {}
  for name, (kind, shape) in named.items():
    if kind != KIND:
      stored[name] = kind, shape
      continue
    *lead, rows, columns = shape
    if rows % SIZE:
      raise errors.UserError(f'{name} is {list(shape)}, and {KIND} has blocks of {SIZE} of its {rows} rows; '
                             'nearest: BF16')
    stored[f'{name}{BLOCKS}'] = 'U8', (*lead, columns, rows // SIZE, SIZE // 2)
    stored[f'{name}{SCALES}'] = 'U8', (*lead, columns, rows // SIZE)
  return stored
