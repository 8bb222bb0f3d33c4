"""Doing a run: the commands it consists of, as processes that write into its directory in turn.

The log of a run is its lock, too, which the processes of the run hold. Otherwise two sweeps in one folder
could train the same run at once. So could a sweep that was killed and started again while its children still
save.
"""

import ctypes
import fcntl
import os
import pathlib
import signal
import subprocess
import sys
import time

from stmoe import plugins
from stmoe.sweep import plan

LOG = 'sweep.log'
STMOE = (sys.executable, '-m', 'stmoe.cli.main')
BUSY = 75                                # the exit code of a run that another process is doing
LAST = 8                                 # lines of its log that tell of a failed run
_LIBC = ctypes.CDLL(None) if sys.platform == 'linux' else None


def commands(run):
  """Returns the arguments of `stmoe`, a list for each command, that are left to do for `run`."""
  here = ['--workdir', str(run.workdir), *(f'--config.{o}' for o in run.overrides)]
  whole = [run.experiment, *here]
  trained = plan.is_trained(run)
  evaluations = plan.missing_evaluations(run) if trained else run.evaluations
  begun = any(path.name.isdecimal() for path in (run.workdir / 'checkpoints').glob('*'))
  command, what = run.made or ('upcycle', run.experiment)
  make = [[command, *run.start[:1], what, *here, *run.start[1:]]] if run.start and not begun else []
  before = [] if begun else [list(words) for words in run.prepare]
  train = ['train', str(run.workdir)] if run.made else ['train', *whole]
  training = [] if trained else [*before, *make, train]
  evaluating = [['eval', str(run.workdir), '--sweep', text] for text in evaluations]
  return [words + plugins.words() for words in training + evaluating]


class Child:
  """The processes of a run, one at a time; with a lock that was free. `left` are the commands not begun yet.

  Raises BlockingIOError if another process is doing this run.
  """

  def __init__(self, run):
    run.workdir.mkdir(parents=True, exist_ok=True)
    self.run = run
    self._log = (run.workdir / LOG).open('ab')
    try:
      fcntl.flock(self._log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      self._log.close()
      raise
    self.left = commands(run)           # only now: the lock's last holder may have done them
    self._process, self._stopping = None, False
    self._next()

  def _next(self):
    words = [*STMOE, *self.left.pop(0)] if self.left else None
    # A process group of its own: Ctrl-C reaches the parent, which passes it on, once.
    self._process = words and subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, process_group=0,
        env=os.environ | {'STMOE_PROGRESS': 'plain'}, preexec_fn=_prepare)

  def poll(self):
    """Returns None while there is something to do, else the exit code of the last command."""
    code = self._process.poll() if self._process else 0
    if code == 0 and self.left and not self._stopping:
      self._next()
      return None
    if code is not None:
      self._log.close()
    return code

  def stop(self, number):
    """Sends a signal to the process at work; no other process is started."""
    self._stopping = True
    if self._process:
      self._process.send_signal(number)

  def wait(self):
    """Waits for the process at work. May be called in the handler of a signal that came amid `poll`."""
    try:
      if self._process:
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:
      pass


def _prepare():
  """In the child: asks Linux for SIGTERM, on which training saves, when the parent is gone.

  A batch system may send the signal of preemption to all processes of a job; the parent acts on it.
  """
  signal.signal(signal.SIGUSR2, signal.SIG_IGN)
  if _LIBC:
    _LIBC.prctl(1, signal.SIGTERM)       # PR_SET_PDEATHSIG


def last_lines(run):
  """Returns the last lines of what the processes of `run` said."""
  file = pathlib.Path(run.workdir) / LOG
  text = file.read_text(encoding='utf-8', errors='replace') if file.is_file() else ''
  return [line for line in text.splitlines() if line.strip()][-LAST:]


class Job:
  """A run as a job of a batch system (submitit): called there, and queued again on preemption."""

  def __init__(self, run):
    self.run = run
    self._child, self._ending = None, False

  def __call__(self):
    """Does the run; raises RuntimeError with its last lines if it fails."""
    try:
      self._child = Child(self.run)
    except BlockingIOError:
      return BUSY
    signal.signal(signal.SIGTERM, self._terminate)
    while (code := self._child.poll()) is None:
      time.sleep(0.2)
    while self._ending:                  # whether the job comes back is for the batch system to say
      signal.pause()
    if code:
      raise RuntimeError('\n'.join([f'{self.run.id} ended with exit code {code}', *last_lines(self.run)]))
    return 0

  def _terminate(self, number, frame):
    """On the SIGTERM that comes a while before the end, the training saves; this waits for the end."""
    self._ending = True
    self._child.stop(signal.SIGTERM)

  def checkpoint(self):
    """Returns what the batch system shall run when the job comes back, after the training has saved."""
    from submitit import helpers
    if self._child:
      self._child.stop(signal.SIGTERM)
      self._child.wait()
    return helpers.DelayedSubmission(Job(self.run))
