"""Pairs of texts for a decoder alone."""

import numpy as np

from stmoe import errors
from stmoe import ranges
from stmoe.data.text import objectives


class Prompted:
  """The target of a pair is predicted by a decoder alone, after its source; nothing else has a loss.

  Both end with EOS. A source that leaves its target no room in the row is cut. So is a target that
  leaves its source none at all.
  """
  eos = True
  paired = True
  prefix = False
  random = False
  sides = {'decoder': 'length'}

  def __init__(self, vocabulary, *, length: ranges.Count):
    if length < 4:
      raise errors.UserError(f'data.length={length}: must be at least 4, two tokens and their EOS')
    self._eos = vocabulary.eos_id
    self.limits = dict(decoder=length)

  def lengths(self, n):
    """Returns [k,1] row places of pairs with n [k,2] tokens, EOS counted."""
    return np.minimum(np.sum(n, axis=1, keepdims=True), self.limits['decoder'])

  def example(self, tokens, rng):
    """Returns dict(decoder=source and target of `tokens`, prefix=length of the source); `rng` is not used."""
    end = int(np.argmax(tokens == self._eos)) + 1
    target = objectives.cut(tokens[end:], self.limits['decoder'] - 2, self._eos)
    source = objectives.cut(tokens[:end], self.limits['decoder'] - len(target), self._eos)
    return dict(decoder=np.concatenate([source, target]), prefix=len(source))
