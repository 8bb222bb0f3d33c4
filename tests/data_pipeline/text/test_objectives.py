"""Objectives: span corruption is T5's and loses nothing; the cut of prefix language modelling."""

import itertools

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from stmoe import errors
from stmoe.data.text.objectives import prefix_lm
from stmoe.data.text.objectives import span_corruption
from stmoe.data.text import vocab

VOCAB = vocab.Bytes(extra_ids=100)


def restore(inputs, targets):
  """The text from both sides: each sentinel of the inputs is replaced by what follows it in the targets."""
  first_sentinel = VOCAB.vocab_size - VOCAB.extra_ids
  spans, found = {}, []
  for i in targets:
    if i >= first_sentinel:
      spans[i] = current = []
    else:
      current.append(i)
  for i in inputs:
    found.extend(spans[i] if i >= first_sentinel else [i])
  return found


def test_lengths_of_t5():
  assert span_corruption.solve_length(512, 0.15, 3.0) == (568, 114)
  task = span_corruption.SpanCorruption(VOCAB, inputs_length=512, targets_length=114)
  assert task.segment == 568
  assert task.lengths([568, 1]).tolist() == [[512, 114], [2, 2]]


@pytest.mark.parametrize('length', [16, 48, 64, 100, 128, 256, 333, 512, 1024])
@pytest.mark.parametrize('density', [0.1, 0.15, 0.3, 0.5])
@pytest.mark.parametrize('mean', [1.0, 2.0, 3.0, 10.0])
def test_lengths_are_those_of_t5(length, density, mean):
  """Its rule: the first text of at least `length` tokens whose inputs do not fit is one token too long."""
  def both(n):                           # each side has the sentinels and EOS
    noise = round(n * density)
    return n - noise + round(noise / mean) + 1, noise + round(noise / mean) + 1

  n = next(n for n in itertools.count(length) if both(n)[0] > length) - 1
  inputs, targets = both(n)
  assert inputs <= length
  shorter = density == 0.5 and targets > inputs
  assert span_corruption.solve_length(length, density, mean) == (n - shorter, targets - shorter)


def test_spans_of_one_token():
  # 47 tokens: round(7.05) = 7 of noise in 7 spans; 40 + 7 sentinels + EOS = 48 inputs, 7 + 7 + 1 targets.
  assert span_corruption.solve_length(48, 0.15, 1.0) == (47, 15)


def test_counts_round_halves_to_even():
  # 0.15 * 10 = 1.5 -> 2, 0.15 * 30 = 4.5 -> 4 (of which 4 / 3 -> 1 span); at least 1, at most n - 1.
  noise, spans = span_corruption.noise_counts([1, 2, 10, 30, 568], 0.15, 3.0)
  assert (noise.tolist(), spans.tolist()) == ([0, 1, 2, 4, 85], [0, 1, 1, 1, 28])


def test_an_example_by_hand():
  tokens = np.arange(10, 18)
  mask = np.array([0, 0, 1, 1, 0, 0, 0, 1], bool)
  inputs, targets = span_corruption.corrupt(tokens, mask, VOCAB.sentinel)
  assert inputs.tolist() == [10, 11, 358, 14, 15, 16, 357]
  assert targets.tolist() == [358, 12, 13, 357, 17]


@given(st.integers(1, 600), st.sampled_from([(0.15, 3.0), (0.5, 3.0), (0.5, 1.0), (0.15, 10.0), (0.9, 2.0)]),
       st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_noise(n, noise, seed):
  mask = span_corruption.noise_mask(n, *noise, np.random.default_rng(seed))
  count, spans = span_corruption.noise_counts(n, *noise)
  starts = np.flatnonzero(np.diff(mask.astype(int), prepend=0) == 1)
  assert (len(mask), mask.sum(), len(starts)) == (n, count, spans)
  assert not mask[0]
  assert n == 1 or mask[-1]


@given(st.lists(st.integers(3, 258), min_size=1, max_size=70), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_nothing_is_lost(tokens, seed):
  task = span_corruption.SpanCorruption(VOCAB, inputs_length=64, targets_length=40)
  tokens = np.array(tokens[:task.segment])
  example = task.example(tokens, np.random.default_rng(seed))
  inputs, targets = example['encoder'], example['decoder']
  assert inputs[-1] == targets[-1] == VOCAB.eos_id
  assert [len(inputs), len(targets)] == task.lengths([len(tokens)])[0].tolist()
  assert len(inputs) <= 64 and len(targets) <= 40
  assert restore(inputs[:-1], targets[:-1]) == tokens.tolist()


def test_all_compositions_are_equally_likely():
  rng = np.random.default_rng(0)
  found = [tuple(span_corruption._composition(5, 3, rng)) for _ in range(6000)]
  counts = {c: found.count(c) for c in set(found)}
  assert len(counts) == 6  # 4 choose 2
  assert all(abs(n - 1000) < 150 for n in counts.values())  # five standard deviations


def test_every_row_length_holds_its_segment():
  for inputs_length in range(2, 300):
    for noise in ((0.15, 3.0), (0.15, 10.0), (0.5, 3.0)):
      task = span_corruption.SpanCorruption(VOCAB, inputs_length=inputs_length, targets_length=400,
                                            noise_density=noise[0], mean_span_length=noise[1])
      assert task.segment >= 1
      assert (task.lengths(np.arange(1, task.segment + 1)) <= (inputs_length, 400)).all()


@pytest.mark.parametrize('fields, said', [
    (dict(inputs_length=512, targets_length=113), 'targets_length=113 is too short.*need 114'),
    (dict(inputs_length=1, targets_length=113), 'too short'),
    (dict(inputs_length=4096, targets_length=2000), 'extra_ids=100 is too small.* have 227 spans')])
def test_impossible_lengths(fields, said):
  with pytest.raises(errors.UserError, match=said):
    span_corruption.SpanCorruption(VOCAB, **fields)


def test_the_cut_of_a_prefix_is_uniform():
  task, rng = prefix_lm.PrefixLm(VOCAB, length=8), np.random.default_rng(0)
  cuts = [task.example(np.arange(5), rng)['prefix'] for _ in range(4000)]
  assert all(abs(cuts.count(cut) - 1000) < 150 for cut in (1, 2, 3, 4))
  assert task.example(np.arange(1), rng)['prefix'] == 0
