"""Sizes of blocks in the vector memory of a TPU, where arrays lie in padded tiles."""

# Bytes that a kernel may use unless it asks for more; the smallest of the chips that kernels are built for.
DEFAULT = 16 * 2**20
# What chips do while a byte arrives from their memory: 166 (v5p), 240 (v5e), 560 (v6e) by their vendor.
FLOPS_PER_BYTE = 240
# Products of bfloat16 that one of float32 is made of.
PASSES = 6
# What starting a step of a grid costs, about a third of a microsecond, as FLOPs that could have been done.
STEP = 5e7


def size(shape, itemsize):
  """Returns the bytes of one block of two dimensions: rows padded to a packed 8, columns to 128.

  >>> size((10, 100), 4), size((10, 100), 2)
  (8192, 4096)
  """
  rows = 32 // itemsize
  return -(-shape[0] // rows) * rows * -(-shape[1] // 128) * 128 * itemsize


def limit(need):
  """Returns the limit to ask for: the default, or for larger tiles what they need and some room."""
  return max(DEFAULT, need + 2 * 2**20)
