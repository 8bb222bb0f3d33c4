"""Blocks in the vector memory of a TPU, where arrays lie in padded tiles: their sizes, and which fit."""

from typing import NamedTuple

import jax

# Bytes that a kernel may use unless it asks for more; the smallest of the chips that kernels are built for.
DEFAULT = 16 * 2**20
# What chips do while a byte arrives from their memory: 166 (v5p), 240 (v5e), 560 (v6e) by their vendor.
FLOPS_PER_BYTE = 240
# Products of bfloat16 that a product of float32 is made of.
PASSES = 6
# What starting a step of a grid costs, about a third of a microsecond, as FLOPs that could have been done.
STEP = 5e7
# Mosaic does not know all precisions that JAX's configuration may name, so this does not depend on it.
PRECISION = dict(float32=jax.lax.Precision.HIGHEST, bfloat16=jax.lax.Precision.DEFAULT)


class Tiles(NamedTuple):
  """Sizes of the blocks of a step of a grouped matmul over M rows, K and N: [m,k] and [k,n] or [m,n].

  Each is the whole dimension; or else m is a multiple of 16, k and n of 128.
  """
  m: int
  k: int
  n: int


def tilings(inner, outer, need, cost):
  """Returns the Tiles of K = inner and N = outer that fit, the cheapest Tiles first.

  Args:
    inner, outer: K and N.
    need: function of Tiles: bytes of vector memory.
    cost: function of Tiles, in any unit.
  """
  widths = lambda size: {min(size, width) for width in (256, 384, 512, 768, 1024, 1536, 2048, size)}
  fits = [tiles for m in (128, 256, 512, 1024) for k in widths(inner) for n in widths(outer)
          if need(tiles := Tiles(m, k, n)) <= DEFAULT]
  return sorted(fits, key=lambda tiles: (cost(tiles), tiles))


def size(shape, itemsize):
  """Returns the bytes of a block of two dimensions: rows padded to a packed 8, columns to 128.

  >>> size((10, 100), 4), size((10, 100), 2)
  (8192, 4096)
  """
  rows = 32 // itemsize
  return -(-shape[0] // rows) * rows * -(-shape[1] // 128) * 128 * itemsize


def limit(need):
  """Returns the limit to ask for: the default, or for larger tiles what they need and some room."""
  return max(DEFAULT, need + 2 * 2**20)
