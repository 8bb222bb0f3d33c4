"""Span corruption: what T5 is trained on."""

import functools

import numpy as np

from stmoe import errors
from stmoe import ranges


class SpanCorruption:
  """Random spans are replaced by sentinels in the inputs, and are the targets (T5, section 3.1.4).

  Noise takes `noise_density` of the tokens in spans of `mean_span_length` on average. Inputs are the
  text with one sentinel for each span, targets the spans, each after its sentinel; both end with EOS.
  The segment is that of `solve_length`; for 512 inputs it is 568 tokens, with 114 targets.
  Differs: T5's count is one too small for what its noise mask then gives at short lengths with long spans.
  Such a segment is shortened here, so that no EOS is ever cut off.
  """
  eos = False
  paired = False
  prefix = False
  random = True
  sides = {'encoder': 'inputs_length', 'decoder': 'targets_length'}

  def __init__(self, vocabulary, *, inputs_length: ranges.Count, targets_length: ranges.Count,
               noise_density: ranges.Between01 = 0.15, mean_span_length: ranges.AtLeast1 = 3.0):
    self._vocabulary = vocabulary
    self._noise = (noise_density, mean_span_length)
    self.limits = dict(encoder=inputs_length, decoder=targets_length)
    self.segment, need = solve_length(inputs_length, noise_density, mean_span_length)
    if min(inputs_length, targets_length) < 2 or need > targets_length:
      raise errors.UserError(f'data.targets_length={targets_length} is too short: {inputs_length} inputs at '
                             f'noise density {noise_density} need {max(need, 2)} (and 2 inputs at least)')
    while (self.lengths([self.segment])[0] > (inputs_length, targets_length)).any():
      self.segment -= 1
    spans = int(noise_counts(self.segment, noise_density, mean_span_length)[1])
    if spans > vocabulary.extra_ids:
      raise errors.UserError(f'data.extra_ids={vocabulary.extra_ids} is too small: {inputs_length} inputs '
                             f'have {spans} spans, each with a sentinel')

  def lengths(self, n):
    """Returns [k,2] lengths of inputs and targets, EOS counted, for segments of n [k] tokens."""
    n = np.asarray(n)
    noise, spans = noise_counts(n, *self._noise)
    return np.stack([n - noise + spans + 1, np.maximum(noise + spans, 1) + 1], axis=1)

  def example(self, tokens, rng):
    """Returns dict(encoder=inputs, decoder=targets), EOS at the end of both."""
    inputs, targets = corrupt(tokens, noise_mask(len(tokens), *self._noise, rng), self._vocabulary.sentinel)
    eos = self._vocabulary.eos_id
    return dict(encoder=np.append(inputs, eos), decoder=np.append(targets, eos))


def noise_counts(n, noise_density, mean_span_length):
  """Returns (noise tokens, spans) for n tokens (int or array); (0, 0) for a single token.

  Both are rounded in float32, halves to even, as in T5's reference.
  Differs: there are never more spans than noise tokens or other tokens. The reference lets that
  happen at densities near one half with mean length near one.
  """
  n = np.asarray(n)
  noise = np.round(n.astype(np.float32) * np.float32(noise_density)).astype(np.int64)
  noise = np.clip(noise, np.minimum(1, n - 1), n - 1)
  spans = np.maximum(np.round(noise.astype(np.float32) / np.float32(mean_span_length)).astype(np.int64), 1)
  return noise, np.minimum(spans, np.minimum(noise, n - noise))


def solve_length(inputs_length, noise_density, mean_span_length):
  """Returns (tokens, targets): the most tokens whose corrupted inputs fit `inputs_length`, as T5 counts.

  (568, 114) for (512, 0.15, 3.0). T5 counts with Python's rounding and without the least of one span.
  At density one half, a token less is taken where targets would be longer than inputs.
  (t5.data.preprocessors.random_spans_helper.)
  """
  def sizes(n):
    noise = round(n * noise_density)
    spans = round(noise / mean_span_length)
    return n - noise + spans + 1, noise + spans + 1
  n = inputs_length - 1                  # all noise in spans of one token: a sentinel for each, and EOS
  while sizes(n + 1)[0] <= inputs_length:
    n += 1
  inputs, targets = sizes(n)
  return (n - 1, targets - 1) if noise_density == 0.5 and targets > inputs else (n, targets)


def noise_mask(n, noise_density, mean_span_length, rng):
  """Returns bool[n], True on noise: spans at random places, the first tokens are never noise."""
  noise, spans = _counts(n, noise_density, mean_span_length)
  if not noise:
    return np.zeros(n, bool)
  lengths = np.stack([_composition(n - noise, spans, rng), _composition(noise, spans, rng)], axis=1)
  return np.repeat(np.arange(2 * spans) % 2 == 1, lengths.reshape(-1))


def corrupt(tokens, mask, sentinel):
  """Returns (inputs, targets): spans of noise become sentinels in inputs, other tokens in targets.

  Args:
    tokens: [n] ids.
    mask: bool[n], True on noise.
    sentinel: number (array) -> id; numbering starts at 0 in both, so that they line up.
  """
  return _replace(tokens, mask, sentinel), _replace(tokens, ~mask, sentinel)


def _replace(tokens, mask, sentinel):
  starts = mask.copy()
  starts[1:] &= ~mask[:-1]
  spans = np.flatnonzero(starts)
  with_sentinels = np.array(tokens, np.int32)
  with_sentinels[spans] = sentinel(np.arange(len(spans)))
  return with_sentinels[starts | ~mask]


def _composition(total, parts, rng):
  """Returns [parts] positive numbers that sum to `total`, uniform among all such."""
  edges = np.zeros(parts + 1, np.int64)
  edges[1:-1] = np.sort(rng.permutation(total - 1)[:parts - 1]) + 1
  edges[-1] = total
  return edges[1:] - edges[:-1]


@functools.lru_cache
def _counts(n, noise_density, mean_span_length):
  return tuple(int(count) for count in noise_counts(n, noise_density, mean_span_length))
