"""Pairs of texts for an encoder and a decoder."""

import numpy as np

from stmoe import errors
from stmoe import ranges
from stmoe.data.text import objectives


class Seq2Seq:
  """The target of a pair is predicted from its source: translation and other text-to-text tasks.

  Both end with EOS. A text longer than its row is cut, and its EOS kept (seqio's append_eos_after_trim).
  """
  eos = True
  paired = True
  prefix = False
  random = False
  sides = {'encoder': 'inputs_length', 'decoder': 'targets_length'}

  def __init__(self, vocabulary, *, inputs_length: ranges.Count, targets_length: ranges.Count):
    if min(inputs_length, targets_length) < 2:
      raise errors.UserError(f'data.inputs_length={inputs_length}, data.targets_length={targets_length}: '
                             'both must be at least 2, a token and EOS')
    self._eos = vocabulary.eos_id
    self.limits = dict(encoder=inputs_length, decoder=targets_length)

  def lengths(self, n):
    """Returns [k,2] row places of pairs with n [k,2] tokens, EOS counted."""
    return np.minimum(n, list(self.limits.values()))

  def example(self, tokens, rng):
    """Returns dict(encoder=source, decoder=target) of `tokens`, both with EOS; `rng` is not used."""
    end = int(np.argmax(tokens == self._eos)) + 1                    # no text has an EOS inside
    return dict(encoder=objectives.cut(tokens[:end], self.limits['encoder'], self._eos),
                decoder=objectives.cut(tokens[end:], self.limits['decoder'], self._eos))
