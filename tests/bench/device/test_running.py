"""A process of the kit: its clock, what it says, and its end."""

import os
import pathlib
import signal
import time
import types

import pytest

from stmoe.bench.device import pending
from stmoe.bench.device import running


@pytest.fixture
def begun(tmp_path):
  """Function of a Python text that returns a Running command of it, whose log is `log` in tmp_path."""
  with (tmp_path / 'log').open('ab') as log:
    yield lambda text: running.Running(
        pending.Command('a command', 1.0, ('-c', text), None), [], dict(os.environ), log)


def test_a_process_that_is_gone_is_told_to_go_without_an_error(monkeypatch, tmp_path):
  monkeypatch.setattr(running, 'WORKER', ('-c', ''))
  with (tmp_path / 'log').open('wb') as log:
    one = running.Running(pending.Job('a job', 1.0, None), [], dict(os.environ), log)
    one.process.wait()
    one.go()
    assert one.over and one.told() == []
    one.stop()


def test_a_pause_is_no_time_of_a_stage(begun, monkeypatch):
  clock = iter([100.0, 103.0, 200.0, 250.0, 251.0])
  with monkeypatch.context() as patch:
    patch.setattr(running, 'time', types.SimpleNamespace(time=lambda: next(clock)))
    one = begun('import time; time.sleep(60)')
    one.pause()
    assert one.seconds == 3.0
    one.resume()
    assert one.seconds == 53.0
  one.stop()


def _lives(pid):
  """Whether the process is there and is no zombie."""
  path = pathlib.Path(f'/proc/{pid}/stat')
  return path.exists() and path.read_text().rpartition(')')[2].split()[0] != 'Z'


def test_what_a_command_started_ends_with_it(begun):
  child = 'import time; time.sleep(60)'
  one = begun(f'import subprocess, sys; print(subprocess.Popen([sys.executable, "-c", {child!r}]).pid)')
  one.process.wait()
  pid = int(one.text())
  assert _lives(pid)
  one.stop()
  until = time.time() + 10
  while _lives(pid) and time.time() < until:
    time.sleep(0.02)
  assert not _lives(pid)


def test_a_process_that_cannot_be_killed_does_not_hold_the_kit(begun, monkeypatch):
  monkeypatch.setattr(running, 'GRACE', 0.1)
  one = begun('import time; time.sleep(60)')
  with monkeypatch.context() as patch:
    patch.setattr(running.os, 'killpg', lambda group, number: None)  # as if a driver held it
    one.stop()
  os.kill(one.process.pid, signal.SIGKILL)
  one.process.wait()


def test_what_a_stopped_command_printed_is_in_the_log(begun, tmp_path):
  one = begun('import time; print("test_x: wrong", flush=True); time.sleep(60)')
  until = time.time() + 10
  while not one.text() and time.time() < until:
    time.sleep(0.02)
  one.stop()
  assert (tmp_path / 'log').read_text() == 'test_x: wrong\n'
