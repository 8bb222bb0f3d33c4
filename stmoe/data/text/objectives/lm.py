"""Language modelling: every token is predicted."""

import numpy as np

from stmoe import ranges
from stmoe.data.text import objectives


class Lm:
  """Every token is predicted from the tokens before it in its segment."""
  eos = True
  paired = False
  prefix = False
  random = False
  whole = True
  sides = {'decoder': 'length'}

  def __init__(self, vocabulary, *, length: ranges.Count):
    del vocabulary
    self.segment = objectives.positive(length)
    self.limits = dict(decoder=length)

  def lengths(self, n):
    """Returns [k,1] row places that segments of n [k] tokens take."""
    return np.asarray(n)[:, None]

  def example(self, tokens, rng):
    """Returns dict(decoder=tokens); `rng` is not used."""
    return dict(decoder=tokens)
