"""Multitask: pairs are translated and texts are denoised by one model (Z-code M3, arXiv:2109.10465)."""

import functools

import numpy as np

from stmoe import errors
from stmoe import ranges
from stmoe.data.text.objectives import denoising
from stmoe.data.text.objectives import seq2seq
from stmoe.data.text.objectives import span_corruption

# Noise after which the text is not written again whole -> its objective.
OTHER_NOISE = {'spans': span_corruption.SpanCorruption}


class Tagged:
  """An objective whose inputs begin with the ids `tag`; `objective` has rooms for inputs without them."""

  def __init__(self, objective, tag):
    self._objective, self._tag = objective, np.asarray(tag, np.int32)
    self.eos, self.paired, self.random = objective.eos, objective.paired, objective.random
    self.segment = getattr(objective, 'segment', None)
    self.limits = objective.limits | dict(encoder=objective.limits['encoder'] + len(tag))

  def lengths(self, n):
    """Returns [k,2] lengths of inputs and targets, the tag counted; n as for the objective."""
    return self._objective.lengths(n) + [len(self._tag), 0]

  def example(self, tokens, rng):
    """Returns dict(encoder=tag and inputs, decoder=targets) of `tokens`."""
    example = self._objective.example(tokens, rng)
    return example | dict(encoder=np.concatenate([self._tag, example['encoder']]))


class Multitask:
  """Of a mixture, tasks of pairs are translated, and texts are denoised, of which a model learns both.

  A row is of one task. The weights of data.mixture say how many rows each has. The loss is a mean over the
  targets of all, so that weights and lengths of targets decide what a task counts.

  noise_density, mean_span_length, noise: of texts, see `denoising.Denoising`; with 'spans' the targets are
    the spans alone, see `span_corruption.SpanCorruption` (T5).
  tags: 'TASK=TEXT', what the inputs of a task begin with: the language that is to be written.
  """
  eos = False
  paired = False
  prefix = False
  random = True
  sides = {'encoder': 'inputs_length', 'decoder': 'targets_length'}

  def __init__(self, vocabulary, *, inputs_length: ranges.Count, targets_length: ranges.Count,
               noise_density: ranges.Between01 = 0.35, mean_span_length: ranges.AtLeast1 = 3.5,
               noise: ranges.Choice(*denoising.NOISE, *OTHER_NOISE) = 'infill',
               tags: ranges.Many(ranges.Text) = ()):
    self._vocabulary = vocabulary
    of_texts = OTHER_NOISE.get(noise) or functools.partial(denoising.Denoising, noise=noise)
    self._of_texts = functools.partial(of_texts, noise_density=noise_density,
                                       mean_span_length=mean_span_length)
    self._tags = dict(map(_tag, tags))
    self.limits = dict(encoder=inputs_length, decoder=targets_length)

  def of(self, paired):
    """Returns dict task -> its objective, of dict task -> whether the task is of pairs.

    Raises UserError for a tag of no task, and for a tag that leaves its inputs no room.
    """
    for name in self._tags:
      if name not in paired:
        raise errors.UserError(f'data.tags: there is no task {name!r}{errors.nearest(name, paired)} (there '
                               f'are: {", ".join(paired)})')
    return {name: self._of_task(name, pairs) for name, pairs in paired.items()}

  def _of_task(self, name, pairs):
    text = self._tags.get(name, '')
    tag = self._vocabulary.encode([text])[0] if text else ()
    room = self.limits['encoder'] - len(tag)
    if room < 2:
      raise errors.UserError(f'data.tags: {text!r} has {len(tag)} tokens, and data.inputs_length='
                             f'{self.limits["encoder"]} leaves no room after it')
    sizes = dict(inputs_length=room, targets_length=self.limits['decoder'])
    make = seq2seq.Seq2Seq if pairs else self._of_texts
    return Tagged(make(self._vocabulary, **sizes), tag)


def _tag(entry):
  """(task, text) of 'TASK=TEXT'."""
  name, equals, text = entry.partition('=')
  if not equals or not text:
    raise errors.UserError(f"data.tags: {entry!r} is none; nearest: '{name or 'TASK'}=<de>'")
  return name, text
