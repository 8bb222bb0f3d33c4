"""What a router knows of the earlier microbatches of a step: the counts of a global balance loss."""

import functools

import jax
import numpy as np
import pytest

from tests.train import test_step
from tests.train import tiny_run


@pytest.fixture(scope='module')
def step(tmp_path_factory):
  folder = tmp_path_factory.mktemp('x')

  @functools.cache
  def run(scope, microbatches=1, devices=1, twice=False):
    """(report, router state) of a step of 8 rows; `twice`: of 4 rows, each in both microbatches."""
    cfg = tiny_run.config(folder, **{'model.layers': (('m', 1),), 'train.microbatches': microbatches,
                                     'losses': dict(balance=(1.0, 'mean'))})
    with cfg.unlocked():
      cfg.blocks.m.router = dict(name='balance', scope=scope,
                                 inner=dict(name='deepseek_moe', num_experts=4, k=2))
    batch = test_step.batch()
    if twice:
      batch = {name: np.concatenate([x[:4], x[:4]]) for name, x in batch.items()}
    state, reports = test_step.run(cfg, [batch], devices)
    return reports[0], state['router_state']
  return run


@pytest.mark.slow
def test_the_loss_is_the_same_on_any_mesh(step):
  one, eight = step('global')[0], step('global', devices=8)[0]
  np.testing.assert_allclose(eight['loss/aux_balance'], one['loss/aux_balance'], rtol=1e-5)
  np.testing.assert_allclose(eight['grad_norm'], one['grad_norm'], rtol=1e-5)
  # One group is one row here: the loss of groups is another one, that of a microbatch the same.
  assert step('microbatch')[0]['loss/aux_balance'] == one['loss/aux_balance']
  assert abs(step('group')[0]['loss/aux_balance'] - one['loss/aux_balance']) > 1e-3


@pytest.mark.slow
def test_later_microbatches_know_the_counts_of_earlier_ones(step):
  ours, alone = (step(scope, 2)[0]['loss/aux_balance'] for scope in ('global', 'microbatch'))
  assert abs(ours - alone) > 1e-4
  assert not any(np.any(counts) for counts in jax.tree.leaves(step('global', 2)[1]))           # of this step


@pytest.mark.slow
def test_what_was_counted_before_may_be_more_of_the_same(step):
  same = [step(scope, number, twice=True)[0] for scope, number in (('global', 2), ('microbatch', 2),
                                                                   ('global', 1))]
  for report in same[1:]:
    np.testing.assert_allclose(report['loss/aux_balance'], same[0]['loss/aux_balance'], rtol=1e-5)
    np.testing.assert_allclose(report['grad_norm'], same[0]['grad_norm'], rtol=1e-4)
