"""Corrupted text: how much is replaced and by what, seeded, in training and evaluation by themselves."""

import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe.data import batches as pipeline
from stmoe.data.text import swap

EOS = 1


def test_a_share_of_the_places_gets_tokens_of_the_text_and_ends_stay():
  tokens = np.arange(2, 20002)
  tokens[999::1000] = EOS
  found = swap.swap(tokens, 0.2, EOS, np.random.default_rng(0))
  changed = np.flatnonzero(found != tokens)
  assert abs(len(changed) / len(tokens) - 0.2) < 0.01
  assert np.array_equal(np.flatnonzero(found == EOS), np.flatnonzero(tokens == EOS))
  assert set(found) <= set(tokens) and np.ptp(found[changed]) > 19000
  assert np.array_equal(swap.swap(tokens, 1.0, EOS, np.random.default_rng(1)) == EOS, tokens == EOS)
  assert swap.swap(np.full(3, EOS), 1.0, EOS, np.random.default_rng(0)).tolist() == [EOS] * 3


@pytest.mark.parametrize('objective', ['lm', 'span_corruption'])
def test_training_and_evaluation_are_corrupted_by_themselves(config, objective):
  make = lambda **fields: config(objective=objective, **fields)
  first = lambda cfg: (next(pipeline.train_iterator(cfg)), pipeline.eval_batches(cfg)[0])
  same = lambda a, b: all(np.array_equal(a[key], b[key]) for key in a)
  (train, evaluated), (train_2, evaluated_2) = first(make()), first(make(replaced=0.3))
  assert not same(train, train_2) and same(evaluated, evaluated_2)
  train_3, evaluated_3 = first(make(eval_replaced=0.3))
  assert same(train, train_3) and not same(evaluated, evaluated_3)
  assert same(evaluated_3, first(make(eval_replaced=0.3))[1])        # the same wrong tokens every time
  for key in (key for key in train if 'segment' in key or 'position' in key or 'weight' in key):
    assert np.array_equal(train[key], train_2[key])                  # nothing moves


def test_inputs_and_targets_are_the_same_corrupted_text(config):
  batch = pipeline.eval_batches(config(eval_replaced=0.5))[0]
  assert np.array_equal(batch['decoder_input_tokens'][:, 1:], batch['decoder_target_tokens'][:, :-1])


def test_epochs_are_corrupted_anew_and_seeds_differ(config):
  def rows(seed, number):
    cfg = config(replaced=0.5)
    cfg.seed = seed
    source = pipeline.source(cfg)
    batch = pipeline.empty(lookup.source(cfg.data), 1)
    source.rows('text', 'train', seed, True).fill(batch, 0, 0, number)
    return batch['decoder_target_tokens'].tolist()
  assert rows(0, 3) == rows(0, 3) and len({str(rows(*at)) for at in ((0, 3), (0, 900), (1, 3))}) == 3


@pytest.mark.parametrize('field', ['replaced', 'eval_replaced'])
def test_a_share_above_one_is_a_mistake(config, field):
  cfg = config(**{field: 1.5})
  with pytest.raises(errors.UserError, match=f'data.{field}=1.5 is a share of the tokens'):
    next(pipeline.train_iterator(cfg))
    pipeline.eval_batches(cfg)[0]
