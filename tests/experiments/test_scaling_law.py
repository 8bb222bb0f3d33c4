"""experiments/scaling_law: its runs exist, and its verdicts are those of the losses it is given."""

import types

import numpy as np
import pytest

from stmoe.analysis.scaling.laws import clark
from stmoe.experiments.scaling_law import report
from stmoe.experiments.scaling_law import sweep


def results(coefficients, noise=0.002):
  """Returns finished runs, as stmoe sweep gives them, of the small sweep: losses drawn from a law.

  Sizes are those of the layers' matrices, 12 D^2 a layer.
  """
  random, found = np.random.default_rng(0), []
  for d_model, layers in sweep.MODELS['small']:
    for experts in sweep.EXPERTS['small']:
      table = dict(n_dense=np.array([12.0 * d_model ** 2 * layers]), experts=np.array([float(experts)]))
      for seed in range(3):
        loss = clark.predict(coefficients, table)[0] * np.exp(noise * random.standard_normal())
        row = dict(n_dense=table['n_dense'][0], experts=experts, seed=seed) | {'eval/loss': loss}
        found.append(types.SimpleNamespace(row=row, seed=seed))
  return found


def test_runs_are_all_different_and_as_many_as_said():
  for argument, count in (('small', 48), ('large', 96), ('smoke', 12)):
    found = list(sweep.runs(argument))
    assert len(found) == count == len({(name, overrides['seed']) for name, _, overrides in found})


@pytest.mark.parametrize('change, answers', [
    ({}, ['holds', 'holds', 'holds', 'holds']),
    (dict(b=0.15, c=-0.01), ['does not hold', 'does not hold', 'does not hold', 'holds']),
])
def test_verdicts(change, answers):
  """Losses of the published law of S-BASE, and of one whose experts do harm, and more so in larger models."""
  found = results(clark.PUBLISHED['s_base'] | change)
  assert [one.answer for one in report.report(found)] == answers


def test_diverged_runs_are_named_and_left_out(capsys):
  found = results(clark.PUBLISHED['s_base'])
  found[4].row['eval/loss'] = None
  assert len(report.table(found)['loss']) == 47 and '1 runs diverged' in capsys.readouterr().out


@pytest.mark.slow
def test_a_law_that_does_not_predict():
  """The largest size 5 % worse than all others say."""
  found = results(clark.PUBLISHED['s_base'])
  for one in found:
    one.row['eval/loss'] *= 1.05 if one.row['n_dense'] == 12 * 192 ** 2 * 6 else 1.0
  assert report.report(found)[-1].answer == 'does not hold'
  assert set(report.figures(found)) == {'fit', 'loss_by_experts', 'effective_parameters'}
