"""One owner of a directory: a second process is refused in one line, and death of any kind frees it."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys

import pytest

from stmoe import errors
from stmoe.runs import owner

HOLD = '''
import sys
from stmoe.runs import owner
with owner.hold(sys.argv[1]):
  print('mine', flush=True)
  sys.stdin.readline()
'''


@pytest.fixture
def other(tmp_path):
  """A process that owns tmp_path until a line is written to it."""
  process = subprocess.Popen([sys.executable, '-c', HOLD, str(tmp_path)], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)
  assert process.stdout.readline() == 'mine\n'
  yield process
  process.kill()
  process.wait()


def test_a_second_process_is_told_who_has_it(tmp_path, other):
  for _ in range(2):                     # the refusal itself changes nothing
    with pytest.raises(errors.UserError) as error, owner.hold(tmp_path):
      pass
    line = str(error.value)
    assert f'{tmp_path} is in use by process {other.pid} on ' in line and f'(-c {tmp_path})' in line
    assert '\n' not in line
  other.communicate('\n')
  with owner.hold(tmp_path):
    assert json.loads((tmp_path / owner.FILE).read_text())['pid'] == os.getpid()


def test_a_killed_owner_leaves_a_file_that_owns_nothing(tmp_path, other):
  other.send_signal(signal.SIGKILL)
  other.wait()
  assert json.loads((tmp_path / owner.FILE).read_text())['pid'] == other.pid
  with owner.hold(tmp_path):
    pass


def test_patience_waits_for_the_other(tmp_path, other):
  other.stdin.write('\n')
  other.stdin.flush()
  with owner.hold(tmp_path, patience=30):
    assert other.wait(30) == 0


def test_a_process_owns_a_directory_once(tmp_path):
  with owner.hold(tmp_path):
    with pytest.raises(errors.UserError, match=f'process {os.getpid()}'), owner.hold(tmp_path):
      pass
  with owner.hold(tmp_path):
    pass


def test_a_removed_file_locks_nothing(tmp_path):
  with owner.hold(tmp_path):
    (tmp_path / owner.FILE).unlink()
    with owner.hold(tmp_path):
      with pytest.raises(errors.UserError, match='in use'), owner.hold(tmp_path):
        pass


@pytest.mark.parametrize('make', [lambda file: file.mkdir(), lambda file: file.symlink_to('/etc/hostname')])
def test_what_is_no_file_is_refused_and_not_followed(tmp_path, make):
  make(tmp_path / owner.FILE)
  with pytest.raises(errors.Damaged, match=owner.FILE), owner.hold(tmp_path):
    pass


def test_a_damaged_record_is_another_process(tmp_path):
  with owner.hold(tmp_path):
    (tmp_path / owner.FILE).write_text('[]')
    with pytest.raises(errors.UserError, match='in use by another process'), owner.hold(tmp_path):
      pass


@pytest.mark.parametrize('code', owner.WITHOUT_LOCKS)
def test_without_locks_it_goes_on_and_says_so(tmp_path, monkeypatch, code):
  def flock(descriptor, how):
    raise OSError(code, os.strerror(code))
  monkeypatch.setattr(fcntl, 'flock', flock)
  said = []
  with owner.hold(tmp_path, say=said.append):
    assert len(said) == 1 and 'has no locks' in said[0]
  assert errno.ENOLCK in owner.WITHOUT_LOCKS
