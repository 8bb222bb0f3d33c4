"""What experiments/robust_experts makes of two attacks, by hand."""

import types

import pytest

from stmoe.experiments.robust_experts import report
from stmoe.experiments.robust_experts import sweep
from stmoe.sweep import collect
from stmoe.sweep import plan


def result(name, seed, joint, alone):
  data = types.SimpleNamespace(sweeps={sweep.FIELD: [(sweep.OTHER, {report.ROBUST: alone})]})
  return collect.Result(types.SimpleNamespace(name=name), data, {'seed': seed, report.ROBUST: joint})


def test_the_attack_that_harms_more_counts():
  found = [result('advmoe', 0, 0.75, 0.5), result('advmoe', 1, 0.25, 0.5), result('advmoe', 2, None, 0.5)]
  assert report.weakest(found, 'advmoe') == {0: 0.5, 1: 0.25, 2: None}
  # A network without a router is attacked once.
  assert report.weakest([result('dense', 0, 0.75, None)], 'dense') == {0: 0.75}


@pytest.mark.parametrize('size', ['smoke', 'small', 'large'])
def test_plain_twice_has_the_steps_of_methods_in_turns(size):
  steps = {run.name: run.steps for run in plan.load(f'robust_experts:{size}').runs}
  assert steps['advmoe'] == steps['bilevel'] and steps['plain'] == steps['dense']
  # At size large half an epoch's batch is cut off; smoke has few steps of all.
  assert size == 'smoke' or steps['plain_twice'] == steps['advmoe'] and steps['advmoe'] // 2 == steps['plain']
