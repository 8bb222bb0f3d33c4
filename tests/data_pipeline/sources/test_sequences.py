"""Sequences: windows and what follows, splits, systems, mistakes."""

import ml_collections
import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe.data import batches as pipeline

# Trajectory k at time t is [100 k + t, -t].
TIMES = np.arange(7)
VALUES = np.stack([np.stack([100 * k + TIMES, -TIMES], 1) for k in range(10)]).astype(np.float64)


@pytest.fixture
def config(tmp_path):
  """Returns make(arrays, **fields of data) -> a configuration of a file with these arrays."""
  def make(arrays, **fields):
    np.savez(tmp_path / 'a.npz', **arrays)
    data = dict(source='sequences', files=(str(tmp_path / 'a.npz'),), length=3, num_values=2, shuffle=False,
                eval_split='validation', cache_dir=str(tmp_path / 'cache'))
    return ml_collections.ConfigDict(dict(seed=0, train=dict(batch_size=2), eval=dict(batch_size=2),
                                          data=data | fields))
  return make


def test_a_window_is_followed_by_its_next_values(config):
  cfg = config(dict(values=VALUES, system=np.arange(10)), num_systems=10)
  batch = next(pipeline.train_iterator(cfg))
  assert batch['features'][:, :, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
  assert batch['values'].tolist() == [[1, -1, 2, -2, 3, -3], [4, -4, 5, -5, 6, -6]]
  assert batch['weights'].all() and batch['given/system'].tolist() == [0, 0]
  held_out, = pipeline.eval_batches(cfg)                             # the tenth trajectory
  assert held_out['features'][:, 0, 0].tolist() == [900, 903] and held_out['given/system'].tolist() == [9, 9]
  assert pipeline.info(cfg)['num_rows'] == dict(train=18, validation=2)
  shapes = lookup.source(cfg.data).shapes(2)
  assert shapes == {name: (a.shape, a.dtype) for name, a in batch.items()}
  cfg.data.stride = 1
  assert pipeline.info(cfg)['num_rows'] == dict(train=36, validation=4)


def test_the_end_of_a_single_trajectory_is_held_out(config):
  cfg = config(dict(values=np.arange(80.0).reshape(40, 2)))
  assert pipeline.info(cfg)['num_rows'] == dict(train=11, validation=1)
  assert pipeline.eval_batches(cfg)[0]['features'][0, 0].tolist() == [72, 73]
  split = np.array(['train'] * 4 + ['validation'] * 6)
  assert pipeline.info(config(dict(values=VALUES, split=split)))['num_rows'] == dict(train=8, validation=12)


@pytest.mark.parametrize('arrays, fields, said', [
    (dict(values=VALUES), dict(length=7), 'data.length=7: a window needs one .*; nearest: data.length=6'),
    (dict(values=VALUES), dict(num_values=3), 'data.num_values=3, but .*; nearest: data.num_values=2'),
    (dict(valeus=VALUES), {}, "has no array 'values'; nearest: valeus"),
    (dict(values=VALUES[0, 0]), {}, 'must hold numbers and have 2 or 3 axes'),
    (dict(values=np.where(VALUES == 103, np.nan, VALUES)), {}, r'values\[1, 3, 0\] is no finite number'),
    (dict(values=VALUES, system=np.arange(10)), dict(num_systems=9), 'has system 9; .* data.num_systems=10'),
    (dict(values=VALUES, system=np.arange(9)), dict(num_systems=9), r'it must be \[10\]'),
    (dict(values=VALUES), dict(num_systems=9), "has no array 'system'"),
    (dict(values=VALUES, split=np.array(['a'] * 10)), {}, "split has 'a'")])
def test_mistakes_are_one_line(config, arrays, fields, said):
  with pytest.raises(errors.UserError, match=said):
    pipeline.source(config(arrays, **fields))
