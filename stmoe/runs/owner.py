"""Who may write into a directory: one process at a time, by a lock that ends with the process.

owner.json in the directory says which process that is, or was last; the file alone owns nothing.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import shlex
import socket
import sys
import time

from stmoe import errors
from stmoe import files

FILE = 'owner.json'
WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)       # what file systems without locks answer


@contextlib.contextmanager
def hold(path, patience=0.0, say=lambda line: print(line, file=sys.stderr)):
  """Context in which this process alone owns the directory `path`, which is there already.

  Args:
    patience: seconds to wait for another owner.
    say:      called with a line where the file system has no locks.
  Raises:
    UserError: another process owns the directory; the line says which.
  """
  file = pathlib.Path(path) / FILE
  descriptor = _locked(file, time.monotonic() + patience, say)
  try:
    _record(descriptor)
    yield
  finally:
    os.close(descriptor)


def _locked(file, until, say):
  """The descriptor of `file`, locked; a lock on a file that was replaced meanwhile counts as none."""
  while True:
    descriptor = _open(file)
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      if os.fstat(descriptor).st_nlink:
        return descriptor
      os.close(descriptor)
    except BlockingIOError:
      os.close(descriptor)
      if time.monotonic() >= until:
        raise errors.UserError(f'{file.parent} is in use by {_who(file)}; two at once would undo each '
                               "other's work") from None
      time.sleep(0.05)
    except OSError as error:
      if error.errno not in WITHOUT_LOCKS:
        os.close(descriptor)
        raise errors.Damaged(file, error.strerror) from error
      say(f'note: the file system of {file.parent} has no locks; let no other command write there')
      return descriptor


def _open(file):
  try:
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
  except OSError as error:
    raise errors.Damaged(file, error.strerror) from error


def _record(descriptor):
  """Writes who this is; in place, because the lock is on this very file."""
  words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
  command = shlex.join(word.encode(errors='replace').decode() for word in words)
  who = dict(host=socket.gethostname(), pid=os.getpid(), command=command,
             since=time.strftime('%Y-%m-%d %H:%M:%S'))
  os.ftruncate(descriptor, 0)
  os.pwrite(descriptor, (json.dumps(who) + '\n').encode(), 0)


def _who(file):
  """The owner in words, as far as owner.json says who it is."""
  try:
    holder = files.read_json(file, limit=1 << 16)
    command = ' '.join(holder['command'].split())[:120]
    return f'process {holder["pid"]} on {holder["host"]} since {holder["since"]} ({command})'
  except (errors.Damaged, KeyError, AttributeError):
    return 'another process'
