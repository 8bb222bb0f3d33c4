"""Which products the kernels for Hopper GPUs compute, `mosaic.py` of an operation; others are Triton's.

This file is asked wherever a program might be for a GPU, so it imports nothing of Mosaic GPU.
"""

import re

import jax.numpy as jnp

from pallas_kernels import target

NAMES = re.compile(r'\bG?H(20|100|200|800)\b')
ALIGNED = 8                             # rows: the copy engine begins at multiples of this, in their layout
WIDTH = 128                             # matrices must be multiples of it along both sides
FEWEST = 128                            # rows an expert has on average, for tiles to be full


def cores():
  """Returns how many multiprocessors the Hopper GPU `target.device` has; None if that is no Hopper GPU."""
  device = target.device()
  if not NAMES.search(device.device_kind):
    return None
  return getattr(device, 'num_cores', None) or device.core_count


def fits(rows, experts, dtype, *widths):
  """Returns whether these kernels run, and fast: on Hopper, in bfloat16, for even sizes and full tiles."""
  return (cores() is not None and dtype == jnp.bfloat16 and rows % ALIGNED == 0 and rows >= FEWEST * experts
          and all(width % WIDTH == 0 for width in widths))


def pays(width):
  """Returns whether rows by a list are gathered to be multiplied here, for products of another side `width`.

  Gathering takes as long whatever follows. What follows gains in proportion to the width, and two products
  share the gathered rows. Measured were two products over their dense floor (H200,
  experiments/kernels/h200.json), by Triton with the list and by these kernels after a gather. Their times
  were 2.81 and 2.77 for width 1024, 3.12 and 2.80 for 1408, 2.53 and 2.48 for 2048, 2.52 and 2.16 for 14336.
  Where the times are level, a list needs less memory.
  """
  return width > 1024
