"""Prefix language modelling: the end of a text is predicted from its beginning."""

from stmoe import ranges
from stmoe.data.text import objectives


class PrefixLm:
  """A segment is cut at a random place; the second part is predicted, the first is visible to all.

  Prefix language modelling of T5 (arXiv:1910.10683, section 3.2.3) on a decoder alone. The cut is
  uniform, and both parts have at least one token. A segment of a single token is predicted.
  """
  eos = True
  paired = False
  prefix = True
  random = True
  sides = {'decoder': 'length'}
  lengths = staticmethod(objectives.of_one)

  def __init__(self, vocabulary, *, length: ranges.Count):
    del vocabulary
    self.segment = objectives.positive(length)
    self.limits = dict(decoder=length)

  def example(self, tokens, rng):
    """Returns dict(decoder=tokens, prefix=number of tokens given)."""
    return dict(decoder=tokens, prefix=int(rng.integers(1, len(tokens))) if len(tokens) > 1 else 0)
