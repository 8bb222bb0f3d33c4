"""A line is due after ten seconds of silence, and later ones after more."""

import time

import pytest

from stmoe import errors
from stmoe import silence
from stmoe.data import bar
from stmoe.sweep import live
from stmoe.train import progress


@pytest.fixture
def clock(monkeypatch):
  """Sets the time: clock(12.0)."""
  now = [0.0]
  monkeypatch.setattr(time, 'monotonic', lambda: now[0])
  return lambda seconds: now.__setitem__(0, seconds)


def test_lines_are_due_after_silence_alone(clock):
  said = []
  tell = silence.telling(said.append)
  for second in range(1, 200):
    clock(float(second))
    tell(second)
  assert said == [10, 25, 48, 82, 133, 193]                          # 10, 15, 22.5, 33.75, 50.6, 60 seconds


def test_a_plain_run_says_what_it_does_where_it_was_silent(clock, capsys):
  show = progress.Plain(10, 0)
  show.busy('evaluating 1/9')
  clock(9.0)
  show.say('a line')
  clock(18.0)
  show.busy('evaluating 2/9')
  clock(19.0)
  show.busy('evaluating 3/9')
  show.busy('evaluating 4/9')
  assert capsys.readouterr().err == 'a line\nevaluating 3/9\n'


def test_what_is_shown_is_one_of_a_few(monkeypatch, capsys):
  monkeypatch.setenv('STMOE_PROGRESS', 'plian')
  for show in (lambda: progress.make(10, 0), lambda: live.make(()), lambda: bar.task('x', 1).__enter__()):
    with pytest.raises(errors.UserError, match=r'STMOE_PROGRESS=plian; nearest: plain \(there are: auto'):
      show()
  for kind, shown in (('plain', 'plain'), ('off', 'off'), ('auto', 'plain'), ('', 'plain')):
    monkeypatch.setenv('STMOE_PROGRESS', kind)
    assert silence.display() == shown
