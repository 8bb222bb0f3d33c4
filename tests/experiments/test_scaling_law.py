"""experiments/scaling_law: its runs exist, and its verdicts are those of the losses it is given."""

import functools
import types

import numpy as np
import pytest

from stmoe import experiment
from stmoe.analysis.scaling import sizes
from stmoe.analysis.scaling.laws import clark
from stmoe.experiments.scaling_law import report
from stmoe.experiments.scaling_law import sweep


@functools.cache
def size(where, texts):
  """Returns `sizes.of` a configuration, as the report asks for it."""
  return sizes.of(experiment.load(where, texts)[0])


def results(coefficients, noise=0.002):
  """Returns finished runs of the two-core sweep, their losses drawn from a law; as stmoe sweep gives them."""
  random, found = np.random.default_rng(0), []
  for _, where, overrides in sweep.runs():
    texts = tuple(f'{field}={value}' for field, value in overrides.items())
    columns = size(where, tuple(text for text in texts if not text.startswith('seed=')))
    table = {column: np.array([float(columns[column])]) for column in clark.COLUMNS}
    loss = float(clark.predict(coefficients, table)[0] * np.exp(noise * random.standard_normal()))
    found.append(types.SimpleNamespace(run=types.SimpleNamespace(experiment=where, overrides=texts),
                                       row={'eval/loss': loss}, seed=overrides['seed']))
  return found


def test_runs_are_all_different_and_as_many_as_said():
  for argument, count in (('small', 90), ('large', 96), ('smoke', 12)):
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


def test_a_law_that_does_not_predict():
  """The largest size 5 % worse than all others say."""
  found = results(clark.PUBLISHED['s_base'])
  for one in found:
    one.row['eval/loss'] *= 1.05 if 'model.d_model=256' in one.run.overrides else 1.0
  assert report.report(found)[-1].answer == 'does not hold'
  assert set(report.figures(found)) == {'fit', 'loss_by_experts', 'effective_parameters'}
