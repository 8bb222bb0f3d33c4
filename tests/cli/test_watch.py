"""`stmoe watch`: what it shows of a run that trains, stands still, or is finished."""

import io
import json
import time

import numpy as np
from rich import console

from stmoe.analysis import watching
from stmoe.cli import main
from tests.analysis import synthetic


def test_a_snapshot_has_the_newest_numbers(tmp_path):
  run = synthetic.write_run(tmp_path / 'a', done=False, extra=dict(eval={}))
  lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()][:15]
  (run / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines) + '{"step": 16')
  devices = dict(kind='NVIDIA H200', mesh=dict(data=4, expert=2))
  (run / 'env.json').write_text(json.dumps(dict(devices=devices)))
  shot = watching.snapshot(run)
  assert (shot.name, shot.state, shot.step, shot.steps) == ('a', 'training', 150, 200)
  np.testing.assert_allclose(shot.rates, (10240, 10240 * 6e5))       # 10 steps of 1,024 tokens a second
  np.testing.assert_allclose(shot.left, 5.0)
  assert shot.devices == ('NVIDIA H200', 8) and len(shot.losses) == 15
  assert set(shot.loads) == {'decoder_01', 'decoder_03'}
  np.testing.assert_allclose([load.mean() for load in shot.loads.values()], 1, rtol=1e-6)
  assert dict(watching.rows(shot, peak=1e11))['utilisation'] == '6.1%'
  assert dict(watching.rows(shot, None))['host memory'] == '1.50 GiB'
  later = watching.snapshot(run, now=time.time() + 600)
  assert later.state == 'quiet for 10 min'


def test_a_run_of_an_earlier_version_has_its_seconds_alone(tmp_path):
  run = synthetic.write_run(tmp_path / 'a', done=False, extra=dict(eval={}))
  lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
  old = [line | dict(time=line['time']['seconds']) for line in lines]
  new = watching.snapshot(run)
  (run / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in old))
  shot = watching.snapshot(run)
  assert (shot.rates, shot.left) == (new.rates, new.left)
  named = lambda shot: dict(watching.rows(shot, None))
  assert 'host memory' in named(new) and 'host memory' not in named(shot)


def test_parts_have_their_gradient_and_their_update(tmp_path):
  run = synthetic.write_run(tmp_path / 'a', extra=dict(eval={}))
  values = {'step': 210, 'parts/router/grad_norm': 0.25, 'parts/router/update_ratio': None}
  with (run / 'metrics.jsonl').open('a') as stream:
    stream.write(json.dumps(values) + '\n')
  words = _printed(watching.panel(watching.snapshot(run))).split()
  at = words.index('router')
  assert words[at - 3:at + 3] == ['update', '│', '│', 'router', '0.25', 'nan']


def test_a_run_without_lines_is_starting(tmp_path):
  run = synthetic.write_run(tmp_path / 'a', layers=(), done=False, extra=dict(eval={}))
  (run / 'metrics.jsonl').unlink()
  shot = watching.snapshot(run)
  assert (shot.state, shot.step, shot.left, shot.rates, shot.loads) == ('starting', 0, None, (None, None), {})
  assert _printed(watching.panel(shot)).count('0/200 steps') == 1


def _printed(panel):
  out = io.StringIO()
  console.Console(file=out, width=100).print(panel)
  return out.getvalue()


def test_the_command_shows_runs_side_by_side(tmp_path, capsys, monkeypatch):
  monkeypatch.setenv('COLUMNS', '120')
  for name in ('a[red]', 'b'):
    synthetic.write_run(tmp_path / name, extra=dict(eval={}))
  assert main.main(['watch', str(tmp_path)]) == 0                    # ends: both are finished
  text = capsys.readouterr().out
  assert any('a[red]: finished' in line and 'b: finished' in line for line in text.splitlines())
  assert '200/200 steps' in text and 'bits per byte' in text and 'decoder_03' in text
  assert main.main(['watch', str(tmp_path / 'c'), '--once']) == 2
  assert 'is not a run directory' in capsys.readouterr().err
