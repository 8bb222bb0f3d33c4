"""How long a user waits: the commands that measure it run a training, so all but their mistakes are slow."""

import pytest

from stmoe import errors
from stmoe import experiment
from stmoe.bench import feed
from stmoe.bench import waiting
from stmoe.cli import main


def test_a_part_of_a_step_needs_its_name(capsys):
  assert main.main(['bench', '--start']) == 2
  assert capsys.readouterr().err == 'stmoe: --start: of which step? nearest: --step lm/stdlib_small --start\n'


@pytest.mark.slow
def test_until_the_first_step():
  rows = waiting.first_step('lm/quickstart:smoke,method=dense')
  for row in rows.values():
    assert 0 < row['step_s'] < row['s'] and row['cpu_s'] > 0
  assert rows['warm']['step_s'] < rows['cold']['step_s']


def test_mistakes_are_told_before_anything_runs():
  with pytest.raises(errors.UserError, match='method=none does not exist'):
    waiting.first_step('lm/quickstart:method=none')


@pytest.mark.slow
def test_the_compiler_and_the_data_are_timed():
  row = waiting.compiling(experiment.load('lm/quickstart:smoke,method=dense')[0])
  assert row['trace_cpu_s'] > 0 and row['compile_cpu_s'] > 0
  one, two = (feed.measure('lm/quickstart:smoke,method=dense', (), workers, 0.5) for workers in (1, 2))
  assert one > 0 and two > 0
