"""What is known of runs from their files while they go on."""

import json

import pytest

from stmoe.sweep import live as progress


def test_the_last_whole_line_counts(sweep):
  run, = sweep(0).runs
  run.workdir.mkdir(parents=True)
  assert progress.step(run) == 0
  (run.workdir / 'metrics.jsonl').write_text('{"step": 1}\n' * 9000 + '{"step": 2}\n{"ste')
  assert progress.step(run) == 2


@pytest.mark.parametrize('line', ['[3]', '{"step": "x"}', '{"step": -1}', '{"step": 4, "a": "x"}', '[' * 999])
def test_what_is_no_line_of_metrics_is_passed_over(sweep, line):
  run, = sweep(0).runs
  run.workdir.mkdir(parents=True)
  (run.workdir / 'metrics.jsonl').write_text('{"step": 2}\n' + line + '\n')
  assert progress.step(run) == 2


def test_time_left_is_that_of_the_steps_left(sweep, monkeypatch):
  found = sweep(0, 1, steps=100)
  now = [0.0]
  monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
  board = progress.Off(found.runs)
  board.status[found.runs[0].id] = progress.RUNNING
  assert board.counts() == '1 running, 1 waiting'
  found.runs[0].workdir.mkdir(parents=True)
  (found.runs[0].workdir / 'metrics.jsonl').write_text('{"step": 50}\n')
  now[0] = 30.0                                                      # 50 of 200 steps in 30 seconds
  assert board.counts() == '1 running, 1 waiting; about 1 min 30 s left'


@pytest.mark.parametrize('kind', ['rich', 'plain', 'off'])
def test_boards_tell_of_failures(sweep, monkeypatch, capsys, kind):
  found = sweep(0, 1)
  monkeypatch.setenv('STMOE_PROGRESS', kind)
  monkeypatch.setenv('FORCE_COLOR', '1')                             # for rich this is a terminal
  board = progress.make(found.runs)
  board.set(found.runs[1], progress.RUNNING)
  board.set(found.runs[0], progress.FAILED)
  board.set(found.runs[0], progress.FAILED)
  board.tick()
  board.close()
  err = capsys.readouterr().err
  assert err.count(f'{found.runs[0].id} failed; its log') == 1
  assert (f'{found.runs[1].id}' in err) == (kind != 'off')


def test_the_loss_of_a_run_is_that_of_its_target(sweep):
  run, = sweep(0, steps=9).runs
  run.workdir.mkdir(parents=True)
  (run.workdir / 'metrics.jsonl').write_text(
      '{"step": 4, "loss/aux_diffusion_prior": 0.5, "loss/mse": 0.25, "loss/router_z": 3, "loss/total": 1}\n')
  assert progress.doing(run) == 'step 4/9, loss 0.2500'


def test_a_line_of_many_layers_is_read(sweep):
  run, = sweep(0, steps=9).runs
  run.workdir.mkdir(parents=True)
  line = dict(step=4) | {f'moe/decoder_{layer:03}/a_metric_{i}': 0.123456789
                           for layer in range(200) for i in range(20)}
  (run.workdir / 'metrics.jsonl').write_text(json.dumps(dict(step=2)) + '\n' + json.dumps(line) + '\n')
  assert progress.step(run) == 4


def test_a_sweep_that_is_long_silent_says_where_its_runs_are(sweep, monkeypatch, capsys):
  found = sweep(0, 1, steps=100)
  now = [0.0]
  monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
  board = progress.Plain(found.runs)
  run = found.runs[0]
  board.set(run, progress.RUNNING)
  run.workdir.mkdir(parents=True)
  (run.workdir / 'metrics.jsonl').write_text('{"step": 50, "loss/ce": 2.31}\n')
  capsys.readouterr()
  board.tick()
  assert capsys.readouterr().err == ''
  now[0] = 11.0
  board.tick()
  board.tick()
  said = capsys.readouterr().err
  assert said.startswith(f'{run.id}: step 50/100, loss 2.3100  [1 running, 1 waiting')
  assert said.count('\n') == 1


def test_before_its_first_line_a_run_has_done_no_step(sweep):
  """A start takes a minute: `step 0/100` would look as if nothing happened."""
  run, = sweep(0, steps=100).runs
  assert progress.doing(run) == 'no step of 100 yet (a start is the import of libraries, data, compiling)'
  run.workdir.mkdir(parents=True)
  (run.workdir / 'metrics.jsonl').write_text('{"step": 3}\n')
  assert progress.doing(run) == 'step 3/100'
