"""Denoising: a text is written again, whole, from a noised copy (BART, arXiv:1910.13461)."""

import numpy as np

from stmoe import errors
from stmoe import ranges
from stmoe.data.text.objectives import span_corruption

# What becomes of the tokens [n] in one span of noise; `mask` is the id of the mask.
NOISE = {
    'infill': lambda span, mask: np.full(1, mask, np.int32),
    'mask': lambda span, mask: np.full(len(span), mask, np.int32),
    'delete': lambda span, mask: span[:0],
}


class Denoising:
  """The decoder writes the text that the encoder reads with noise; both end with EOS.

  Noise takes `noise_density` of the tokens in spans of `mean_span_length` on average. `noise` says what
  becomes of a span: one mask ('infill'), a mask for each token ('mask'), or nothing ('delete', whose spans
  in BART are of one token). The mask is the vocabulary's first sentinel.
  Differs: lengths of spans are uniform among those with this mean, BART's are Poisson's, which may be 0.
    mBART also permutes sentences.
  """
  eos = False
  paired = False
  prefix = False
  random = True
  sides = {'encoder': 'inputs_length', 'decoder': 'targets_length'}

  def __init__(self, vocabulary, *, inputs_length: ranges.Count, targets_length: ranges.Count,
               noise_density: ranges.Between01 = 0.35, mean_span_length: ranges.AtLeast1 = 3.5,
               noise: ranges.Choice(*NOISE) = 'infill'):
    if vocabulary.extra_ids < 1:
      raise errors.UserError('data.extra_ids=0: the mask of noise is a sentinel; nearest: 1')
    if min(inputs_length, targets_length) < 2:
      raise errors.UserError(f'data.inputs_length={inputs_length}, data.targets_length={targets_length}: '
                             'both must be at least 2, a token and EOS')
    self._eos, self._mask = vocabulary.eos_id, int(vocabulary.sentinel(0))
    self._noise, self._counts = NOISE[noise], (noise_density, mean_span_length)
    self.limits = dict(encoder=inputs_length, decoder=targets_length)
    self.segment = targets_length - 1
    while (self.lengths([self.segment])[0] > (inputs_length, targets_length)).any():
      self.segment -= 1

  def lengths(self, n):
    """Returns [k,2] lengths of inputs and targets, EOS counted, for segments of n [k] tokens."""
    n = np.asarray(n)
    noise, spans = span_corruption.noise_counts(n, *self._counts)
    of_one_token = len(self._noise(np.zeros(1, np.int32), 0))
    grows = len(self._noise(np.zeros(2, np.int32), 0)) > of_one_token
    masks = noise if grows else spans * of_one_token
    return np.stack([n - noise + np.where(noise > 0, masks, 0) + 1, n + 1], axis=1)

  def example(self, tokens, rng):
    """Returns dict(encoder=noised text, decoder=text) of `tokens`, both with EOS."""
    noised = span_corruption.noise_mask(len(tokens), *self._counts, rng)
    cuts = np.flatnonzero(np.diff(noised)) + 1
    parts = [self._noise(part, self._mask) if noised[start] else part
             for start, part in zip([0, *cuts], np.split(np.asarray(tokens, np.int32), cuts))]
    return dict(encoder=np.concatenate([*parts, [self._eos]]), decoder=np.append(tokens, self._eos))
