"""Objectives: what is given and what is to be predicted of a segment of text.

An objective has `eos` (whether documents carry their EOS in the stream), `segment` (tokens it takes
at most), `limits` (row lengths by side), `prefix` (whether part of a row is given), `random` (whether
it draws), `lengths(n) -> [k,sides]` and `example(tokens, rng) -> dict` for pack.fill, where random
draws come from the numpy generator handed in.
"""

import numpy as np


class Lm:
  """Every token is predicted from those before it in its segment."""
  eos = True
  prefix = False
  random = False

  def __init__(self, length):
    self.segment = length
    self.limits = dict(decoder=length)

  def lengths(self, n):
    """Returns [k,1] row places that segments of n [k] tokens take."""
    return np.asarray(n)[:, None]

  def example(self, tokens, rng):
    """Returns dict(decoder=tokens); `rng` is not used."""
    return dict(decoder=tokens)
