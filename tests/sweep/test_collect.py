"""The table of a sweep: which runs are in it, what their columns hold."""

import csv
import dataclasses
import json
import sys
import types

from stmoe import experiment
from stmoe.analysis.scaling import sizes
from stmoe.derive import start as starts
from stmoe.sweep import collect
from stmoe.sweep import plan


def finish(run, loss):
  """Writes what a training of `run` leaves, without training."""
  run.workdir.mkdir(parents=True)
  config, _ = experiment.load(run.experiment, run.overrides)
  env = dict(revision='abc', python='3.11', packages=dict(jax='1'), devices=dict(kind='cpu', cpus=2))
  final = {'step': run.steps, 'eval/loss': loss, 'moe/drop_frac': 0.25}
  for name, content in (('config.json', config.to_dict()), ('env.json', env), ('metrics.jsonl', final),
                        ('DONE', final)):
    (run.workdir / name).write_text(json.dumps(content) + '\n')
  line = {'field': 'eval.draws', 'value': 2, 'step': run.steps, 'eval/loss': 9.0}
  (run.workdir / 'evals.jsonl').write_text(json.dumps(line) + '\n')


def test_finished_runs_become_rows(sweep, tmp_path, monkeypatch):
  from stmoe.analysis import table
  costs, cost = [], table.cost
  monkeypatch.setattr(table, 'cost', lambda config: costs.append(config.seed) or cost(config))
  found = sweep(0, 1, 2, evaluations={'eval.draws': [2]})
  finish(found.runs[0], 2.5)
  finish(found.runs[1], None)
  results = collect.results(found.runs)
  assert costs == [0]                                                # seeds cost the same
  assert collect.values(results, 'run') == {0: 2.5, 1: None} and collect.values(results, 'other') == {}
  assert collect.evaluated(results, 'run', 'eval.draws', 2) == {0: 9.0, 1: 9.0}
  paths = collect.write(tmp_path / 'out', results, 'stmoe sweep x')
  assert {p.name for p in paths} == {'evaluations.csv', 'evaluations.parquet', 'results.csv', 'results.json',
                                     'results.parquet'}
  with (tmp_path / 'out' / 'results.csv').open() as stream:
    first, second = csv.DictReader(stream)
  config, _ = experiment.load('lm/stdlib:smoke', found.runs[0].overrides)
  expected = cost(config) | sizes.of(config)
  assert {key: float(first[key]) for key in expected} == expected and expected['experts'] == 8
  assert [first[key] for key in ('id', 'seed', 'train.steps', 'step')] == [found.runs[0].id, '0', '3', '3']
  assert first['overrides'] == 'seed=0 train.steps=3' and first['experiment'] == 'lm/stdlib:smoke'
  assert (first['eval/loss'], second['eval/loss']) == ('2.5', '')
  facts = json.loads((tmp_path / 'out' / 'results.json').read_text())
  assert facts == dict(command='stmoe sweep x', runs=2, seeds=[0, 1], revisions=['abc'], devices=['cpu'],
                       cpus=['2'], jax=['1'], python=['3.11'])
  from pyarrow import parquet
  loss = parquet.read_table(tmp_path / 'out' / 'results.parquet')['eval/loss'].to_pylist()
  assert loss == [2.5, None]
  monkeypatch.setitem(sys.modules, 'pyarrow', None)                  # as where the core alone is installed
  paths = collect.write(tmp_path / 'core', results, 'stmoe sweep x')
  assert {p.name for p in paths} == {'evaluations.csv', 'results.csv', 'results.json'}


def test_a_damaged_run_is_left_out_and_said(sweep, monkeypatch, capsys):
  from stmoe.analysis import table
  monkeypatch.setattr(table, 'cost', lambda config: {})
  monkeypatch.setattr(collect, '_sizes', lambda config: {})
  found = sweep(0, 1, 2, 3, 4, evaluations={'eval.draws': [2]})
  for run in found.runs:
    finish(run, 2.5)
  for run, name in zip(found.runs, ('DONE', 'evals.jsonl', 'config.json', 'env.json')):
    (run.workdir / name).write_text('[]\n')
  found = sweep(0, 1, 2, 3, 4, evaluations={'eval.draws': [2]})        # what is damaged stops no other run
  assert [plan.is_done(run) for run in found.runs] == [False, False, True, True, True]
  assert [one.seed for one in collect.results(found.runs)] == [4]
  said = capsys.readouterr().err.splitlines()
  assert [line.partition(':')[2].split()[0] for line in said] == [run.id for run in found.runs[:4]]


def test_a_row_says_what_a_run_began_with(sweep, tmp_path):
  [run] = sweep(0).runs
  run = dataclasses.replace(run, start=('from',), made=('compress', 'prune'))
  run.workdir.mkdir(parents=True)
  facts = dict(bytes=[8, 4], calibration_seconds=1.5, parameters=[2, 1])
  made = starts.origin('prune', {}, [], facts)
  (run.workdir / 'ancestry.json').write_text(json.dumps(made))
  data = types.SimpleNamespace(config={}, done={'eval/loss': 1.0}, lines=[{'step': 0, 'eval/loss': 3.0}])
  row = collect.row(run, data, {})
  keys = 'start/eval/loss', 'eval/loss', 'bytes', 'calibration_seconds'
  assert [row[key] for key in keys] == [3.0, 1.0, 4, 1.5]


def test_a_row_names_no_folder_of_the_machine(sweep):
  [run] = sweep(0).runs
  run = dataclasses.replace(run, overrides=(f'data.cache_dir={run.workdir.resolve()}/here',))
  row = collect.row(run, types.SimpleNamespace(config=dict(seed=0), done={}), {})
  assert row['overrides'] == 'data.cache_dir={run}/here' and row['data.cache_dir'] == '{run}/here'
