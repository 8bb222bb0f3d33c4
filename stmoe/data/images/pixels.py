"""Single images as arrays: decoded, cut out and resized, with the wanted channels."""

import io

import numpy as np
from PIL import Image

from stmoe import errors


def resize(pixels, size, box):
  """Returns uint8[size,size,C], what lies in `box` of uint8[H,W,C]; bilinear, averaging where it shrinks.

  Args:
    box: (left, top, right, bottom) in pixels, fractions allowed.
  """
  if pixels.shape[:2] == (size, size) and box == (0, 0, size, size):
    return pixels
  picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
  return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box)).reshape(size, size, -1)


def with_channels(pixels, channels):
  """Returns uint8[H,W,channels]: `pixels` [H,W,C] themselves, or their single channel repeated."""
  if pixels.shape[2] == channels:
    return pixels
  if pixels.shape[2] != 1:
    raise errors.UserError(f'data.channels={channels}, but an image has {pixels.shape[2]}')
  return np.repeat(pixels, channels, axis=2)


def decode(encoded):
  """Returns uint8[H,W,C] of the bytes of a JPEG or PNG file: C = 1 for grey, else 3."""
  picture = Image.open(io.BytesIO(encoded))
  pixels = np.asarray(picture.convert('L' if picture.mode in ('1', 'L', 'I;16') else 'RGB'))
  return pixels if pixels.ndim == 3 else pixels[..., None]


def encode(pixels):
  """Returns the bytes of a PNG file of uint8[H,W,C], C of 1 or 3."""
  out = io.BytesIO()
  Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(out, 'PNG')
  return out.getvalue()
