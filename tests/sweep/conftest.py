"""Sweeps of runs that `fake_stmoe.py` does in no time."""

import pathlib
import sys

import pytest

from stmoe.sweep import plan
from stmoe.sweep import work

FAKE = (sys.executable, str(pathlib.Path(__file__).with_name('fake_stmoe.py')))


@pytest.fixture
def fake(monkeypatch):
  """Makes runs start fake_stmoe.py; the value is its command."""
  monkeypatch.setattr(work, 'STMOE', FAKE)
  monkeypatch.setenv('STMOE_PROGRESS', 'plain')
  return FAKE


@pytest.fixture
def sweep(tmp_path):
  """Writes a sweep file of runs with `seeds` and loads it: sweep(0, 1, steps=3) -> plan.Sweep."""
  def make(*seeds, steps=3, evaluations=None, **load):
    file = tmp_path / 'question' / 'sweep.py'
    file.parent.mkdir(exist_ok=True)
    file.write_text(f'''"""Runs of a test."""


def runs():
  for seed in {seeds!r}:
    yield dict(name='run', experiment='lm/stdlib:smoke', evaluations={evaluations or {}!r},
               overrides={{'seed': seed, 'train.steps': {steps}}})
''')
    return plan.load(str(file), workdir=tmp_path / 'runs', **load)
  return make
