"""Progress: a bar on a terminal, lines with the time left elsewhere, nothing when switched off."""

import time

import pytest

from stmoe.data import bar as progress


@pytest.mark.parametrize('kind', ['auto', 'plain'])
def test_plain_lines_say_what_is_left(kind, monkeypatch, capfd):
  monkeypatch.setenv('STMOE_PROGRESS', kind)
  now = iter([0.0, 11.0, 13.0, 22.0, 40.0])                          # the first piece has 11 seconds
  monkeypatch.setattr(progress.time, 'time', lambda: next(now))
  with progress.task('caching', 1000, 'bytes') as advance:
    for _ in range(3):
      advance(100)
  assert capfd.readouterr().err.splitlines() == [
      'caching ...', 'caching: 100 of 1,000 bytes, 0.0 MB/s',
      f'caching: 300 of 1,000 bytes, 0.0 MB/s, {11 / 200 * 700:.0f} s left', 'caching: done in 40.0 s']


def test_a_bar(monkeypatch, capfd):
  monkeypatch.setenv('STMOE_PROGRESS', 'rich')
  with progress.task('caching', 1000) as advance:
    advance(1000)
  assert '100%' in capfd.readouterr().err


def test_patience_says_that_something_still_runs(monkeypatch, capfd):
  monkeypatch.setattr(progress, 'EVERY', 0.01)
  for kind in ('rich', 'off'):
    monkeypatch.setenv('STMOE_PROGRESS', kind)
    with progress.patience('waiting'):
      time.sleep(0.2)
    said = capfd.readouterr().err.splitlines()
    assert set(said) == ({'waiting: 0 s'} if kind == 'rich' else set())


def test_off(monkeypatch, capfd):
  monkeypatch.setenv('STMOE_PROGRESS', 'off')
  with progress.task('caching', None) as advance:
    advance(1)
  assert capfd.readouterr().err == ''
