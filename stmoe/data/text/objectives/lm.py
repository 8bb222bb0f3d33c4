"""Language modelling: every token is predicted."""

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
  lengths = staticmethod(objectives.of_one)

  def __init__(self, vocabulary, *, length: ranges.Count):
    del vocabulary
    self.segment = objectives.positive(length)
    self.limits = dict(decoder=length)

  def example(self, tokens, rng):
    """Returns dict(decoder=tokens); `rng` is not used."""
    return dict(decoder=tokens)
