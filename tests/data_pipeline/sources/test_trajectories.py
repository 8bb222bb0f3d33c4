"""Trajectories: generated families by their energies, rows of environments, files, mistakes."""

import ml_collections
import numpy as np
import pytest

from stmoe import errors
from stmoe import experiment
from stmoe import lookup
from stmoe.data import batches as pipeline


@pytest.fixture
def config(tmp_path):
  """Returns make(arrays of a file or None, **fields of data) -> a configuration."""
  def make(arrays=None, **fields):
    data = dict(source='trajectories', task='families', families=('harmonic', 'van_der_pol'), environments=3,
                length=5, step=0.1, shuffle=True, eval_split='validation', cache_dir=str(tmp_path / 'cache'))
    if arrays is not None:
      np.savez(tmp_path / 'a.npz', **arrays)
      data |= dict(task='npz', files=(str(tmp_path / 'a.npz'),), num_environments=2, num_families=1, step=0.5)
    return ml_collections.ConfigDict(dict(seed=0, train=dict(batch_size=6), eval=dict(batch_size=6),
                                          data=data | fields))
  return make


# Trajectory k of 8: states [10 k + t, -t] at times t / 2; four of each of two environments.
VALUES = np.stack([np.stack([10 * k + np.arange(6), -np.arange(6)], 1) for k in range(8)]).astype(float)
FILE = dict(values=VALUES, environment=np.array([0, 1] * 4), family=np.zeros(8, int))


def test_rows_are_environments_around_one_of_them(config):
  cfg = config()
  train = pipeline.train_iterator(cfg)
  first, second = next(train), next(train)
  assert sorted(first['given/environment']) == [0, 1, 2, 3, 4, 5]
  assert len(set(first['around'])) == len(set(second['around'])) == 1
  assert (first['family'].argmax(1) == first['given/environment'] // 3).all()
  shapes = lookup.source(cfg.data).shapes(6)
  assert shapes == {name: (a.shape, a.dtype) for name, a in first.items()}
  held_out, = pipeline.eval_batches(cfg)
  np.testing.assert_array_equal(held_out['around'], held_out['given/environment'])
  assert held_out['shown'].sum(0).tolist() == [1, 1, 1, 0, 1, 1, 1, 0]
  again = next(pipeline.train_iterator(config()))
  np.testing.assert_array_equal(again['values'], first['values'])    # seeded
  other = next(pipeline.train_iterator(config(draw=1)))
  assert (other['values'] != first['values']).any()


def test_a_linear_oscillator_keeps_its_energy(config):
  batch = pipeline.eval_batches(config(families=('harmonic',), length=50))[0]
  states = batch['values'].reshape(6, 2, 50, 2).astype(np.float64)
  x, v = states[:3, ..., 0], states[:3, ..., 1]
  stiffness = [(v[e, 0, 0] ** 2 - v[e, 0, 9] ** 2) / (x[e, 0, 9] ** 2 - x[e, 0, 0] ** 2) for e in range(3)]
  assert all(0.9 * 2.1 < k < 1.1 * 2.1 for k in stiffness) and len(set(np.round(stiffness, 3))) == 3
  energy = v ** 2 + np.array(stiffness)[:, None, None] * x ** 2
  np.testing.assert_allclose(energy, np.broadcast_to(energy[..., :1], energy.shape), rtol=1e-3)


def test_files_and_observed_sequences(config):
  cfg = config(FILE | dict(times=np.arange(6) / 2))
  held_out = pipeline.eval_batches(cfg)[0]                           # the last two of each environment
  assert held_out['initial'][:2, :, 0].tolist() == [[40, 60], [50, 70]]
  assert held_out['values'][0, 0].tolist() == [41, -1, 42, -2, 43, -3, 44, -4, 45, -5]
  observed = pipeline.eval_batches(config(FILE, observed=True))[0]
  assert observed['initial'][0, 0].tolist() == [40, 0, 41, -1, 42, -2, 43, -3, 44, -4]
  split = np.array(['validation'] * 4 + ['train'] * 4)
  assert pipeline.eval_batches(config(FILE | dict(split=split)))[0]['initial'][0, 0, 0] == 0


@pytest.mark.parametrize('arrays, fields, said', [
    (None, dict(families=()), 'data.families is empty'),
    (None, dict(held_out=3), 'data.held_out=3: rows hold data.trajectories=2; nearest: 2'),
    (None, dict(num_values=3), 'data.num_values=3: states of data.families have 2'),
    (None, dict(step=40.0),
     'data.step=40: .* leaves the range of numbers in step [1-5]; nearest: data.step=20'),
    (FILE, dict(num_environments=0), 'data.num_environments=0'),
    (FILE, dict(num_environments=1), 'goes to 1; wanted: .* below 1'),
    (FILE, dict(length=4), r'mean \[8, 5, 2\]'),
    (FILE, dict(trajectories=4), 'trajectories of an environment fill rows, .* environment 0 has 2'),
    (FILE | dict(times=np.array([0, .5, 1, 1, 2, 2.5])), {},
     'step 2 of times is 0, .* nearest: times that grow'),
    (FILE | dict(times=np.arange(6) / 4), {}, 'step 0 of times is 0.25, .* nearest: data.step=0.25'),
    (FILE | dict(values=np.where(VALUES == 41, np.inf, VALUES)), {}, 'is no finite number')])
def test_mistakes_are_one_line(config, arrays, fields, said):
  with pytest.raises(errors.UserError, match=said) as caught:
    pipeline.source(config(arrays, **fields))
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('field', ['blocks.m.experts.step', 'data.step'])
@pytest.mark.parametrize('value', ['0', '-0.1', 'nan'])
def test_a_step_that_is_no_time_is_refused(field, value):
  with pytest.raises(errors.UserError, match=f'{field}=.*above 0'):
    experiment.load('mixer/families', [f'{field}={value}'])


def test_the_router_follows_the_number_of_environments():
  cfg, _ = experiment.load('mixer/families', ['model.num_environments=4'])
  assert cfg.blocks.m.router.num_environments == 4
