"""The sweeps of experiments/: every size can start, and their reports speak of runs that there are."""

import functools
import json
import types

import numpy as np
import pytest

from stmoe import experiment
from stmoe.analysis import verdict
from stmoe.experiments import figures
from stmoe.sweep import collect
from stmoe.sweep import plan

SIZES = ('smoke', 'small', 'large')
NAMES = sorted(plan.available())
# Made-up numbers make no scaling law; its report has a test of its own.
REPORTS = [name for name in NAMES if name != 'scaling_law']

METRICS = ('eval/loss', 'eval/accuracy', 'eval/robust_accuracy')


class Row(dict):
  """A row in which every metric is there: some number that depends on the run."""

  def get(self, key, default=None):
    return super().get(key, 1.0 + self['at'] / 7 + self['seed'] / 100)


load = functools.cache(plan.load)
begun = functools.cache(lambda name: plan.experiment.load(name)[0])  # configurations


@functools.cache
def made_up(name):
  """Returns a collect.Result for every run of sweep `name`, as if all were done."""
  sweep = load(f'{name}:small')
  found, names = [], list(dict.fromkeys(run.name for run in sweep.runs))
  for run in sweep.runs:
    at = names.index(run.name)
    fields = dict(text.split('=', 1) for text in run.overrides)
    config, values = begun(run.experiment), {}
    for field, _, texts in (text.partition('=') for text in run.evaluations):
      apply = lambda text, field=field, config=config: plan.experiment.apply(config, f'{field}={text}')
      values[field] = [(_applied(config, field, apply, text), dict.fromkeys(METRICS, 1.0 + at / 7))
                       for text in filter(None, texts.split(';'))]
    data = types.SimpleNamespace(sweeps=values)
    found.append(collect.Result(run, data, Row(seed=int(fields['seed']), at=at)))
  return found


def _applied(config, field, apply, text):
  """The value that `text` gives the field, as evals.jsonl has it."""
  apply(text)
  return json.loads(json.dumps(plan.experiment.flatten(config)[field]))


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('size', [
    pytest.param(size, marks=[pytest.mark.slow] * (size != 'small')) for size in SIZES])
def test_every_size_can_start_with_seeds_for_a_verdict(name, size):
  found = load(f'{name}:{size}').runs
  seeds = {}
  for run in found:
    seeds.setdefault(run.name, []).append(next(text for text in run.overrides if text.startswith('seed=')))
  assert all(len(set(own)) == len(own) >= (2 if size == 'smoke' else 3) for own in seeds.values())


@pytest.mark.parametrize('name', REPORTS)
def test_reports_compare_runs_that_exist_and_draw(name):
  sweep = load(f'{name}:small')
  assert plan.items(sweep.file) == plan.items(sweep.file, 'small'), 'small is the size without an argument'
  module, results = experiment.module_of(sweep.file.with_name('report.py')), made_up(name)
  told, seeds = module.report(results), len({result.row['seed'] for result in results})
  assert told and seeds >= 3 and all(one.seeds == (seeds, seeds) for one in told), told
  assert {one.answer for one in told} <= {verdict.HOLDS, verdict.FAILS, verdict.OPEN}
  for figure in module.figures(results).values():
    assert any(ax.lines for ax in figure.axes)
  page = sweep.file.with_name('README.md').read_text(encoding='utf-8')
  assert page.startswith('# ') and f'stmoe sweep {name} --report experiments/{name}/results' in page


@pytest.mark.parametrize('name', REPORTS)
def test_no_verdict_without_runs(name):
  sweep = load(f'{name}:small')
  told = experiment.module_of(sweep.file.with_name('report.py')).report(made_up(name)[:1])
  assert {one.answer for one in told} == {verdict.OPEN}


def test_a_seed_whose_runs_all_diverged_is_left_out_of_figures():
  values = {0: 1.0, 1: None}
  lines = {'a': {1: values, 2: values}}
  for figure in (figures.points(lines['a'], 'x'), figures.curves(lines, 'x', 'y')):
    assert all(np.isfinite(line.get_xydata()).all() for ax in figure.axes for line in ax.lines)
