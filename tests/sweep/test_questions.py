"""The experiments that runs belong to: noted by the sweep, judged where its file may be run."""

import json

import pytest

from stmoe import errors
from stmoe.runs import read as runs_lib
from stmoe.sweep import collect
from stmoe.sweep import conclude
from stmoe.sweep import origin
from stmoe.sweep import plan
from stmoe.sweep import questions

COST = dict(parameters=10, active=5, flops_per_token=7.0, flops_per_step=9.0)
REPORT = """from stmoe.analysis import verdict


def report(results):
  values = {one.seed: one.row['eval/loss'] for one in results}
  return [verdict.exceeds('lower than two', values, {seed: 2.0 for seed in values})]
"""


@pytest.fixture
def cheap(monkeypatch):
  """Costs without models."""
  monkeypatch.setattr(collect.table, 'cost', lambda config: COST)
  monkeypatch.setattr(collect, '_sizes', lambda config: {})


def finish(run, loss, evaluations=()):
  """Writes what a run of a sweep leaves behind, with the evaluations (field, values)."""
  config, _ = plan.experiment.load(run.experiment, run.overrides)
  run.workdir.mkdir(parents=True)
  (run.workdir / 'config.json').write_text(plan.experiment.to_json(config))
  for name in ('metrics.jsonl', 'DONE'):
    (run.workdir / name).write_text(json.dumps({'step': run.steps, 'eval/loss': loss}) + '\n')
  lines = [dict(step=run.steps, field=field, value=value) | {'eval/loss': loss}
           for field, values in evaluations for value in values]
  (run.workdir / 'evals.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))


def test_a_private_sweep_is_judged_only_where_it_is_named(sweep, cheap):
  asked = sweep(0, 1, 2)
  asked.file.with_name('report.py').write_text(REPORT)
  for run, loss in zip(asked.runs[:2], (1.0, 1.1)):
    finish(run, loss)
  origin.record(asked, ['seed=0'])
  runs = runs_lib.read_all([run.workdir for run in asked.runs[:2]])
  assert questions.of(runs) == []                                    # no code from what a folder says
  [found] = questions.of(runs, [str(asked.file)])
  assert [one.answer for one in found.verdicts] == ['holds']
  assert found.verdicts[0].effect == pytest.approx(0.95)
  assert found.note.startswith('2 of its 3 runs') and str(asked.file) in found.command
  with pytest.raises(errors.UserError, match='no such file'):
    questions.of(runs, ['nowhere/sweep.py'])


@pytest.mark.parametrize('more, says', [
    ('def figures(results):\n  return 1 / 0\n', 'line 8: ZeroDivisionError: division by zero'),
    ("report = lambda results: ['yes']\n", "report returned 'yes'; wanted: verdict.Verdict"),
    ('report = lambda results: None\n', "TypeError: 'NoneType' object is not iterable")])
def test_a_report_that_fails_is_a_line_with_its_file(more, says, tmp_path):
  (tmp_path / 'report.py').write_text(REPORT.removesuffix('\n') + f'\n{more}')
  with pytest.raises(errors.UserError, match=f'{tmp_path}/report.py.*: {says}|{tmp_path}/report.py, {says}'):
    conclude.write(tmp_path, plan.experiment.module_of(tmp_path / 'report.py'), [], 1)


def test_runs_of_an_experiment_are_found_by_what_the_sweep_noted(tmp_path, cheap):
  asked = plan.load('momentum:smoke', ['train.steps=5'], tmp_path)
  for run in asked.runs:
    values = [(text.partition('=')[0], json.loads(f'[{text.partition("=")[2].strip(";").replace(";", ",")}]'))
              for text in run.evaluations]
    finish(run, 1.0 + len(run.name) / 10, values)
  runs = runs_lib.read_all(runs_lib.expand([tmp_path]))
  assert len(runs) == len(asked.runs) and questions.of(runs) == []   # no note yet
  origin.record(asked, ['train.steps=5'])
  origin.record(asked, ['train.steps=5'])
  assert origin.recorded(tmp_path) == [dict(sweep='momentum:smoke', overrides=['train.steps=5'])]
  [found] = questions.of(runs)
  assert found.name == 'momentum:smoke' and found.verdicts and found.figures
  assert found.command.endswith('--config.train.steps=5') and 'Claim' in found.text
  assert questions.of(runs[:1])[0].note.startswith('1 of its')


@pytest.mark.parametrize('text', ['{}', '[3]', '[{"sweep": 3, "overrides": []}]', '[{"sweep": "a"}]', '['])
def test_notes_that_are_none_are_told(tmp_path, capsys, text):
  asked = plan.load('momentum:smoke', workdir=tmp_path)
  finish(asked.runs[0], 1.0)
  (tmp_path / origin.FILE).write_text(text)
  assert questions.of(runs_lib.read_all([asked.runs[0].workdir])) == []
  assert f'no verdicts: {tmp_path / origin.FILE}: ' in capsys.readouterr().err
  with pytest.raises(errors.Damaged, match='sweep.json'):
    origin.record(asked, [])
  assert (tmp_path / origin.FILE).read_text() == text


def test_a_sweep_that_cannot_be_read_any_more_is_told_and_left_out(tmp_path, capsys):
  asked = plan.load('momentum:smoke', workdir=tmp_path)
  finish(asked.runs[0], 1.0)
  (tmp_path / origin.FILE).write_text(json.dumps([dict(sweep='momentum:gone', overrides=[])]))
  assert questions.of(runs_lib.read_all([asked.runs[0].workdir])) == []
  assert "no verdicts of momentum:gone: no size is called 'gone'" in capsys.readouterr().err
