"""Trajectories as targets: the outer loss by hand, the Rand index, what is shown, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.core.units import trajectories as units
from stmoe.targets import trajectories

# Three environments of two trajectories of one number; errors 1, 4 and 16, the last by one trajectory alone.
BATCH = dict(values=jnp.zeros((3, 2, 1)), weights=jnp.array([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]]),
             family=jnp.eye(2)[jnp.array([0, 0, 1])], initial=jnp.ones((3, 2, 1)),
             shown=jnp.eye(4)[jnp.array([0, 1, 2])])
OUT = units.Predicted(values=jnp.array([[[1.0], [-1.0]], [[2.0], [2.0]], [[4.0], [99.0]]]),
                      choice=jnp.eye(2)[jnp.array([[1, 1], [1, 1], [0, 0]])], rank=jnp.array([1, 0, 2]),
                      context=jnp.array([[0.0, 0.0], [2.0, -4.0], [0.0, 0.0]]))


def test_the_loss_is_of_the_nearest_environments():
  target = trajectories.Trajectories(contributors=2, l1=0.1)
  loss, report = target.loss(OUT, BATCH, target.counts(BATCH))
  assert float(loss) == pytest.approx((1 + 4 + 0.3) / 2) and float(report['loss/mse']) == 2.5
  parts = [jax.tree.map(lambda x, at=at: x[at], (OUT, BATCH)) for at in (np.s_[:1], np.s_[1:])]
  both = sum(float(target.loss(*part, target.counts(BATCH))[0]) for part in parts)
  assert both == pytest.approx(float(loss))                          # microbatches add up


def test_reweighted_losses_follow_the_worst_in_one_microbatch():
  target = trajectories.Trajectories(contributors=3, l1=0.0, reweighted=True)
  loss, _ = target.loss(OUT, BATCH, target.counts(BATCH))
  weights = np.exp([1, 4, 16]) / np.exp([1, 4, 16]).sum()
  assert float(loss) == pytest.approx(weights @ [1, 4, 16], rel=1e-5)
  half = jax.tree.map(lambda x: x[:1], (OUT, BATCH))
  with pytest.raises(errors.UserError, match='nearest: train.microbatches=1'):
    target.loss(*half, target.counts(BATCH))


def test_families_and_experts_agree():
  target = trajectories.Trajectories()
  sums = jax.tree.map(np.float64, target.judge(OUT, BATCH) | dict(weight=jnp.sum(BATCH['weights'])))
  found = target.metrics(sums)
  assert found['eval/loss'] == pytest.approx((1 + 1 + 4 + 4 + 16) / 5) and found['eval/rand'] == 1
  np.testing.assert_array_equal(sums['table'], [[0, 4], [1, 0]])
  np.testing.assert_array_equal(found['shown']['predicted'][:, 0], [1, 2, 4, 0])
  assert found['shown']['choice'].sum(1).tolist() == [1, 1, 1, 0]


def test_other_lengths_are_one_line():
  with pytest.raises(errors.UserError, match='nearest: model.d_model=1'):
    trajectories.Trajectories().judge(OUT.replace(values=jnp.zeros((3, 2, 4))), BATCH)
