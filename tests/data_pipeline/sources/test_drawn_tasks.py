"""Drawn tasks: as related as is said, the same for the same problem, scaled by the rows of training."""

import ml_collections
import numpy as np
import pytest

from stmoe import errors
from stmoe.data import batches as pipeline
from stmoe.targets import binary


def config(tmp_path, **fields):
  data = dict(source='drawn_tasks', num_rows=3000, num_held_out=500, num_features=20, shuffle=False,
              eval_split='validation', cache_dir=str(tmp_path))
  return ml_collections.ConfigDict(dict(seed=0, train=dict(batch_size=3000), eval=dict(batch_size=500),
                                        data=data | fields))


def rows(cfg):
  train = pipeline.train_iterator(cfg)
  batch = next(train)
  train.close()
  return batch


def test_tasks_are_as_related_as_is_said(tmp_path):
  """Without sines and noise, answers are w_k x, whose correlation with the first is p."""
  plain = dict(sines=0, noise=0.0, correlation=0.6, num_tasks=3)
  cfg = config(tmp_path, **plain)
  batch = rows(cfg)
  found = np.corrcoef(batch['values'].T)
  np.testing.assert_allclose(found[0, 1:], 0.6, atol=0.04)
  np.testing.assert_allclose(found[1, 2], 0.36, atol=0.05)           # p^2: both lean on the first
  np.testing.assert_allclose([batch['values'].mean(0), batch['values'].std(0) - 1], 0, atol=1e-4)
  assert pipeline.info(cfg)['num_rows'] == dict(train=3000, validation=500)
  left = np.linalg.lstsq(batch['features'], batch['values'], rcond=None)[1]
  assert (left < 1e-3 * len(batch['values'])).all()                  # linear but for the mean


def test_a_problem_is_its_number(tmp_path):
  one, same, other = (rows(config(tmp_path, problem=n))['values'] for n in (3, 3, 4))
  np.testing.assert_array_equal(one, same)
  assert abs(np.corrcoef(one[:, 0], other[:, 0])[0, 1]) < 0.2


def test_answers_of_a_share(tmp_path):
  cfg = config(tmp_path, positives=(0.5, 0.1))
  np.testing.assert_allclose(rows(cfg)['values'].mean(0), [0.5, 0.1], atol=1e-3)
  assert pipeline.info(cfg)['answers'] == {'task 0': (0.0, 1.0), 'task 1': (0.0, 1.0)}
  with pytest.raises(errors.UserError, match='there are 1 shares for 2 tasks'):
    rows(config(tmp_path, positives=(0.5,)))
  with pytest.raises(errors.UserError, match='num_features=2: 3 tasks .* nearest: data.num_features=3'):
    rows(config(tmp_path, num_features=2, num_tasks=3))


@pytest.mark.parametrize('least, most, said', [
    (0.0, 0.0, 'data.labels: love is 0 in every row of training'),
    (1.0, 1.0, 'data.labels: love is 1 in every row of training'),
    (0.0, 5.0, 'data.labels: love is 5 in a row of training; .* nearest: loss.name=values')])
def test_a_task_without_positives_is_one_line(least, most, said):
  facts = dict(answers=dict(like=(0.0, 1.0), love=(least, most)))
  with pytest.raises(errors.UserError, match=said) as caught:
    binary.Binary().fits(facts)
  assert '\n' not in str(caught.value)
