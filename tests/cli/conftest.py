"""The command line in this process: `command('list', 'lm')` -> (exit code, stdout, stderr)."""

import pytest

from stmoe.cli import main


@pytest.fixture
def command(capsys):
  def run(*argv):
    code = main.main([str(word) for word in argv])
    out, err = capsys.readouterr()
    return code, out, err
  return run


@pytest.fixture
def mistake(command):
  """Runs a command that must fail as a mistake of the user; returns its one line on stderr."""
  def run(*argv):
    code, _, err = command(*argv)
    lines = err.splitlines()
    assert code == 2 and lines, (code, err)
    assert lines[-1].startswith('stmoe: ') and 'Traceback' not in err, err
    return lines[-1]
  return run
