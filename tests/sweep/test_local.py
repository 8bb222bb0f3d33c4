"""Runs as processes of this machine: N at a time, gaps filled, failures apart, interrupts saved."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time

from stmoe.sweep import live as progress
from stmoe.sweep import plan
from stmoe.sweep import work
from stmoe.sweep.launchers import local


def launch(found, **fields):
  board = progress.Off(found.runs)
  code = local.launch([run for run in found.runs if not plan.is_done(run)], board, poll=0.02, **fields)
  return code, board


def starts(run):
  return [line for line in (run.workdir / work.LOG).read_text().splitlines() if line.startswith('from')]


def test_all_are_done_and_done_ones_are_not_started_again(fake, sweep):
  found = sweep(0, 1, 2, evaluations={'eval.draws': [1, 2]})
  assert launch(found, jobs=2)[0] == 0 and all(map(plan.is_done, found.runs))
  (found.runs[1].workdir / 'evals.jsonl').unlink()                   # only what is missing is done again
  (found.runs[2].workdir / 'DONE').unlink()
  _, board = launch(found)
  assert set(board.status.values()) == {progress.DONE}
  assert [len(starts(run)) for run in found.runs] == [1, 1, 2]
  said = (found.runs[2].workdir / work.LOG).read_text()
  assert said.count('from step 3') == 1
  assert said.count('group of its own') == 2                         # a terminal's Ctrl-C is not for them


def test_jobs_run_at_the_same_time(fake, sweep, monkeypatch):
  monkeypatch.setenv('FAKE_DELAY', '0.05')
  found, seen = sweep(0, 1, 2, 3, steps=8), []
  board = progress.Off(found.runs)
  board.tick = lambda: seen.append(list(board.status.values()).count(progress.RUNNING))
  local.launch(list(found.runs), board, jobs=2, poll=0.02)
  assert max(seen) == 2


def test_a_failure_is_told_with_its_last_lines_and_stops_no_other(fake, sweep, capsys):
  found = sweep(13, 1)
  code, board = launch(found)
  assert code == 0 and list(board.status.values()) == [progress.FAILED, progress.DONE]
  err = capsys.readouterr().err
  assert '  | bad luck\n  | stmoe: seed 13 is not allowed' in err and str(found.runs[0].workdir) in err


def test_interrupt_saves_all_and_the_next_call_goes_on(fake, sweep, monkeypatch):
  monkeypatch.setenv('FAKE_DELAY', '0.05')
  found = sweep(0, 1, 2, steps=40)

  def interrupt():
    while min(map(progress.step, found.runs[:2])) < 2:
      time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)
  threading.Thread(target=interrupt).start()
  code, board = launch(found, jobs=2)
  assert code == 130
  assert list(board.status.values()) == [progress.STOPPED, progress.STOPPED, progress.WAITING]
  assert all('stopped after step' in work.last_lines(run)[-1] for run in found.runs[:2])
  monkeypatch.setenv('FAKE_DELAY', '0')
  assert launch(found, jobs=3)[0] == 0 and all(map(plan.is_done, found.runs))
  assert 'from step 0' not in starts(found.runs[0])[-1]
  lines = (found.runs[0].workdir / 'metrics.jsonl').read_text().splitlines()
  assert len(lines) == 40                                            # none was trained twice


def test_a_run_that_is_stopped_before_its_evaluations_is_not_done(fake, sweep):
  found = sweep(0, evaluations={'eval.draws': [1, 2]})
  child, board = work.Child(found.runs[0]), progress.Off(found.runs)
  child.wait()                           # the training has ended by itself
  child.stop(signal.SIGTERM)
  assert local._alive([child], board, progress.STOPPED) == []
  assert board.status == {found.runs[0].id: progress.STOPPED}
  assert launch(found)[0] == 0 and plan.is_done(found.runs[0])


def test_a_run_that_another_process_does_is_waited_for(fake, sweep):
  found = sweep(0, 1)
  first = found.runs[0]
  first.workdir.mkdir(parents=True)
  other = (first.workdir / work.LOG).open('ab')
  fcntl.flock(other, fcntl.LOCK_EX)
  seen, board = [], progress.Off(found.runs)

  def tick():
    seen.append(tuple(board.status.values()))
    if board.status[found.runs[1].id] == progress.DONE:
      (first.workdir / 'DONE').write_text('{"step": 3}')
      other.close()
  board.tick = tick
  assert local.launch(list(found.runs), board, poll=0.02) == 0
  assert (progress.ELSEWHERE, progress.RUNNING) in seen and seen[-1] == (progress.DONE, progress.DONE)
  assert starts(first) == []                                         # the other one did it


def test_children_save_when_their_parent_is_killed(fake, sweep, monkeypatch):
  monkeypatch.setenv('FAKE_DELAY', '0.05')
  run, = sweep(0, steps=400).runs
  file = str(run.workdir.parent.parent / 'question' / 'sweep.py')
  code = ('import sys; from stmoe.sweep import live, plan, work\n'
          'from stmoe.sweep.launchers import local\n'
          f'work.STMOE = {fake!r}\nfound = plan.load({file!r}, workdir={str(run.workdir.parent)!r})\n'
          'local.launch(found.runs, live.Off(found.runs), poll=0.02)')
  parent = subprocess.Popen([sys.executable, '-c', code])
  _until(lambda: progress.step(run) > 2)
  parent.kill()
  parent.wait()
  _until(lambda: 'stopped after step' in work.last_lines(run)[-1])
  monkeypatch.setenv('FAKE_DELAY', '0')
  assert launch(sweep(0, steps=400))[0] == 0 and plan.is_done(run)


def _until(true, seconds=30):
  end = time.monotonic() + seconds
  while not true():
    assert time.monotonic() < end
    time.sleep(0.02)
