"""A process of one job: begun, made to wait, let go on, ended."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

from stmoe.bench.device import pending

WORKER = ('-m', 'stmoe.bench.device.worker')
GRACE = 8.0                              # seconds to end after SIGTERM, and to be gone after SIGKILL


class Running:
  """A Job or a Command in a process of its own.

  job, process: what, and where.
  stage:   'compiling' until a Job's programs are there, 'ready' until it is told to `go`, then 'working'.
    A Command is 'working' from the start.
  seconds: that the stage took so far, without those in which the process was paused.
  over:    whether the process has ended.

  Args:
    job:  the Job or Command.
    more: words of a Job's command line.
    environment: of the process.
    log:  file open for writing that gets what the process says; of a Command's output, once it is stopped.
  """

  def __init__(self, job, more, environment, log):
    self.job, self._log, self._rest = job, log, b''
    self._began, self._paused = time.time(), None
    self.is_command = isinstance(job, pending.Command)
    self.stage = 'working' if self.is_command else 'compiling'
    if self.is_command:
      self.output = tempfile.TemporaryFile()
      self._start(job.words, environment | job.environment, log, stdin=subprocess.DEVNULL, stdout=self.output)
    else:
      self._pipe, writing = os.pipe()
      os.set_blocking(self._pipe, False)
      words = (*WORKER, '--tell', str(writing), *more, job.name)
      self._start(words, environment, log, stdin=subprocess.PIPE, stdout=log, pass_fds=[writing])
      os.close(writing)

  def _start(self, words, environment, log, **more):
    self.process = subprocess.Popen([sys.executable, *words], process_group=0, env=environment, stderr=log,
                                    bufsize=0, **more)

  def told(self):
    """Returns the dicts that a Job's process told since the last call, [] of a Command."""
    lines = []
    while not self.is_command:
      try:
        chunk = os.read(self._pipe, 1 << 16)
      except BlockingIOError:
        break
      *whole, self._rest = (self._rest + chunk).split(b'\n')
      lines += map(json.loads, whole)
      if not chunk:
        break
    return lines

  @property
  def seconds(self):
    return (self._paused or time.time()) - self._began

  @property
  def over(self):
    return self.process.poll() is not None

  def text(self):
    """Returns what a Command wrote to its standard output."""
    self.output.seek(0)
    return self.output.read().decode(errors='replace')

  def go(self):
    """Lets a Job's process time."""
    self.stage, self._began = 'working', time.time()
    try:
      self.process.stdin.write(b'go\n')
    except BrokenPipeError:              # it has died meanwhile, which `over` says
      pass

  def pause(self):
    """Stops the process, and those that it started, where they are."""
    self._paused = time.time()
    self._signal(signal.SIGSTOP)

  def resume(self):
    """Lets the process, and those that it started, go on."""
    self._began += time.time() - self._paused
    self._paused = None
    self._signal(signal.SIGCONT)

  def stop(self):
    """Ends the process and those that it started, which may live on where it has ended by itself."""
    self._signal(signal.SIGTERM)
    self._signal(signal.SIGCONT)         # a paused process hears nothing else
    self._wait()
    self._signal(signal.SIGKILL)
    self._wait()                         # not for ever: a driver that hangs keeps its process
    if self.is_command:
      self._log.write(self.text().encode())
      self._log.flush()
      self.output.close()
    else:
      self.process.stdin.close()
      os.close(self._pipe)

  def _wait(self):
    with contextlib.suppress(subprocess.TimeoutExpired):
      self.process.wait(GRACE)

  def _signal(self, number):
    try:
      os.killpg(self.process.pid, number)
    except ProcessLookupError:
      pass
