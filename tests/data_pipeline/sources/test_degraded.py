"""Degraded images: what is drawn in training and what stays, and the images beside them."""

import ml_collections
import numpy as np
import pytest

from stmoe import errors
from stmoe.data import batches as pipeline
from stmoe.data.sources import degraded

FIELDS = dict(task='digits', objective='restoration', image_size=12, channels=1, shuffle=True,
              eval_split='validation', cache_dir='')


def config(**fields):
  return ml_collections.ConfigDict(dict(seed=0, train=dict(batch_size=64), eval=dict(batch_size=64),
                                        data=FIELDS | fields))


def test_every_weather_changes_its_image_within_the_range():
  batch = next(pipeline.train_iterator(config(symmetries=True)))
  assert batch['image'].shape == batch['pixels'].shape == (64, 12, 12, 1)
  assert set(batch['given/weather'].tolist()) == {0, 1, 2}
  for image, pixels in zip(batch['image'], batch['pixels']):
    assert 0 <= image.min() <= image.max() <= 1 and np.abs(image - pixels).max() > 0.01
  haze = batch['given/weather'] == 2
  assert batch['image'][haze].min() >= 0.3 and (batch['image'][haze] >= batch['pixels'][haze]).all()


def test_held_out_weather_is_always_the_same_and_training_weather_is_drawn_anew():
  one, again = (next(iter(pipeline.eval_batches(config()))) for _ in range(2))
  assert all(np.array_equal(one[name], again[name]) for name in one)
  rows = pipeline.source(config()).rows('digits', 'train', 5, train=True)
  drawn = [pipeline.empty(degraded.Degraded(task='digits', image_size=12, channels=1), 1) for _ in range(2)]
  for number, batch in enumerate(drawn):
    rows.fill(batch, 0, row=3, number=number)
  assert np.array_equal(drawn[0]['pixels'], drawn[1]['pixels'])
  assert not np.array_equal(drawn[0]['image'], drawn[1]['image'])


def test_channels_are_1_or_3():
  with pytest.raises(errors.UserError, match='data.channels=2: images have 1 or 3') as caught:
    pipeline.source(config(channels=2))
  assert '\n' not in str(caught.value)
