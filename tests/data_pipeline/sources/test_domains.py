"""Domains: rows of one domain, a support that is not judged in training, every image judged once."""

import numpy as np

from stmoe import experiment
from stmoe.data import batches as pipeline


def config(**fields):
  changed = [f'data.{name}={value}' for name, value in fields.items()]
  return experiment.load('meta_dmoe/digits:smoke', changed)[0]


def test_a_row_is_of_one_domain_and_every_held_out_image_is_judged_once(tmp_path):
  cfg = config(cache_dir=tmp_path)
  opened = pipeline.source(cfg)
  stream = pipeline.train_iterator(cfg, opened=opened)
  batch, other = next(stream), next(stream)
  assert not batch['weights'][:, :64].any() and batch['weights'][:, 64:].all()
  assert (batch['features'] != other['features']).any() and set(batch['given/domain']) <= set(range(12))
  again = next(pipeline.train_iterator(cfg, opened=opened))
  for name, array in batch.items():
    np.testing.assert_array_equal(array, again[name])
  judged, supports = np.zeros(6), {}
  for held_out in pipeline.eval_batches(cfg, opened=opened):
    for x, weights, domain in zip(*(held_out[name] for name in ('features', 'weights', 'given/domain'))):
      if weights.any():
        judged[domain] += weights.sum()
        np.testing.assert_array_equal(supports.setdefault(domain, x[:64]), x[:64])
  assert judged.tolist() == [359] * 6                                # every fifth of 1,797 digits
  assert opened.info()['vocab_size'] == 10
  assert pipeline.info(config(cache_dir=tmp_path, binary=True))['vocab_size'] == 1


def test_domains_are_changed_images_in_an_order_of_the_seed(tmp_path):
  images = {change: pipeline.source(config(cache_dir=tmp_path, change=change, sources='(0.0,1.0)', size=70,
                                           held='(0.0,)')).rows('domains', 'validation', 0, False).arrays
            for change in ('rotation', 'contrast', 'noise')}
  plain = images['rotation']['features'][0]
  assert plain.min() == -1 and plain.max() == 1
  np.testing.assert_array_equal(images['noise']['features'][0], plain)
  assert not images['contrast']['features'].any()                    # a half of black and white
  orders = [pipeline.source(config(cache_dir=tmp_path, order_seed=seed)).rows('domains', 'train', 0, True)
            for seed in (0, 1)]
  means = [rows.arrays['features'].mean((1, 2)) for rows in orders]
  assert not np.allclose(*means) and np.allclose(np.sort(means[0]), np.sort(means[1]), atol=1e-5)
