"""Images in noise: what is random in a row is the row's own, and evaluation goes through fixed levels."""

import numpy as np
import pytest

from stmoe import sections
from stmoe.configs import common
from stmoe.data import batches as pipeline
from stmoe.data.sources import diffusion

import ml_collections


def config(**fields):
  c = ml_collections.ConfigDict(dict(seed=0, train=dict(batch_size=64), eval=dict(batch_size=120),
                                     data=common.noise('digits', 8, channels=1) | fields))
  sections.complete(c)
  return c


def test_rows_of_training_are_their_own_however_they_are_divided():
  batches = lambda shard=0, parts=1: pipeline.train_iterator(config(), shard, parts)
  whole = batches()
  first, second = next(whole), next(whole)
  halves = [next(batches(i, 2)) for i in (0, 1)]
  for name, array in first.items():
    np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), array)
  again = batches()
  next(again)
  np.testing.assert_array_equal(next(again)['noise'], second['noise'])
  assert abs(first['noise'].mean()) < 0.1 and 0.95 < first['noise'].std() < 1.05
  assert not np.array_equal(first['noise'], second['noise'])
  assert 0 <= first['given/time'].min() < 0.1 and 0.9 < first['given/time'].max() < 1


@pytest.mark.parametrize('share, hidden', [(0.0, (0, 0)), (0.5, (20, 44)), (1.0, (64, 64))])
def test_classes_are_hidden(share, hidden):
  labels = next(pipeline.train_iterator(config(label_dropout=share)))['given/label']
  low, high = hidden
  assert low <= (labels == diffusion.NO_CLASS).sum() <= high and labels.max() < 10
  held_out = pipeline.eval_batches(config(label_dropout=share))[0]['given/label']
  assert (held_out == diffusion.NO_CLASS).all() == (share == 1) and (held_out >= 0).all() == (share < 1)


def test_evaluation_has_all_levels_alike():
  one, other = (pipeline.eval_batches(config(levels=levels))[0] for levels in diffusion.LEVELS)
  np.testing.assert_array_equal(one['given/time'], other['given/time'])
  np.testing.assert_array_equal(one['noise'], other['noise'])
  levels, counts = np.unique(one['given/time'], return_counts=True)
  np.testing.assert_allclose(levels, (np.arange(20) + 0.5) / 20)
  assert (counts == 6).all()


def test_pictures_have_no_noise():
  source = pipeline.source(config())
  images, labels = source.pictures('validation', 50)
  assert images.shape == (50, 8, 8, 1) and labels.shape == (50,)
  np.testing.assert_array_equal(images, pipeline.eval_batches(config())[0]['image'][:50])
