"""What experiments/diffusion_experts makes of scores, by hand; its models cost alike."""

import csv

import pytest

from stmoe import experiment
from stmoe.analysis import table
from stmoe.experiments.diffusion_experts import measure
from stmoe.experiments.diffusion_experts import sweep


def test_models_cost_alike():
  costs = []
  for _, start, fields in sweep.runs():
    if fields['seed'] == 0:
      overrides = [f'{field}={value}' for field, value in fields.items()]
      costs.append(table.cost(experiment.load(start, overrides)[0])['flops_per_token'])
  assert len(costs) == len(sweep.MODELS) and max(costs) < 1.005 * min(costs)


def test_a_table_has_a_row_for_every_run(tmp_path, monkeypatch):
  monkeypatch.setattr(measure.rundir, 'opened', lambda run: experiment.load('promoe/digits:smoke')[0])
  for name in ('promoe-1a', 'dense-2b'):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'DONE').write_text('{}\n')
    (tmp_path / name / measure.FILE).write_text('{"accuracy": 0.5, "classes": 9.0}\n')
  assert measure.main([str(tmp_path), str(tmp_path / 'out')]) == 0   # what is there is not drawn again
  with open(tmp_path / 'out' / measure.TABLE, encoding='utf-8', newline='') as stream:
    rows = list(csv.DictReader(stream))
  assert [row['name'] for row in rows] == ['dense', 'promoe']
  assert {(row['seed'], row['accuracy'], row['classes']) for row in rows} == {('0', '0.5', '9.0')}


def test_a_folder_without_runs_is_one_line(tmp_path, capsys):
  assert measure.main([str(tmp_path)]) == measure.main([]) == 2
  assert capsys.readouterr().err.count('\n') == 2


@pytest.mark.slow
def test_a_run_is_scored_and_keeps_its_pictures(tmp_path, monkeypatch):
  from stmoe.train import loop
  monkeypatch.setattr(measure, 'NUMBER', 10)
  monkeypatch.setattr(measure, 'STEPS', 2)
  run = tmp_path / 'promoe-1a'
  loop.train(experiment.load('promoe/digits:smoke', ['train.steps=2'])[0], run)
  assert measure.main([str(tmp_path)]) == 0
  assert 0 <= measure.recorded(run)['accuracy'] <= 1 and (run / 'samples.png').is_file()
