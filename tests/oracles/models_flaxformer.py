"""flaxformer's sparse encoder-decoder in our form: weights by name, its treatment of padding."""

import numpy as np


def decoder_mask(inputs):
  """Returns i32[B,T], 1 where flaxformer's decoder counts a position as real.

  Computed from shifted inputs: a position counts if its token or the next one is real, or
  if it is the first. So a start token (id 0) counts, and so does the first padding target.
  """
  inputs = np.asarray(inputs)
  after = np.pad(inputs[:, 1:], ((0, 0), (0, 1)))
  real = (inputs > 0) | (after > 0)
  real[:, 0] = True
  return real.astype(np.int32)
