"""Does what a directory lacks, in order of worth, until the budget ends; every record is saved at once.

Jobs of the GPU run in a worker, a process of its own, which may crash, hang or break the GPU's context. Then
the record of the job at hand says so, and another worker does the next job. Commands are processes too.
"""

import datetime
import itertools
import json
import os
import selectors
import signal
import subprocess
import sys
import time

from stmoe import errors
from stmoe.bench.device import pending
from stmoe.bench.device import measured

LOG = 'log.txt'
MARGIN = 10.0                            # seconds of the budget kept to stop a process and write the tables
PATIENCE = 4.0                           # times the expected seconds after which a job hangs, and at least
LEAST = 90.0                             # so many seconds
GRACE = 8.0                              # seconds to end after SIGTERM
# JAX leaves memory to PyTorch; what a worker compiled, its successor need not compile again.
ENVIRONMENT = dict(XLA_PYTHON_CLIENT_MEM_FRACTION='0.6', JAX_COMPILATION_CACHE_DIR='.cache/device',
                   JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='1', TF_CPP_MIN_LOG_LEVEL='2')


class Stopped(BaseException):
  """SIGTERM or Ctrl-C came; `code` is the exit code."""

  def __init__(self, number):
    self.code = 128 + number


class Kit:
  """One call of the kit.

  Args:
    folder: of the results.
    budget: seconds that the call may take.
    dry:    tiny shapes on a CPU.
    only:   function of a job's name: whether it is meant.
    note:   called with a line of progress.
  """

  def __init__(self, folder, budget, dry=False, only=lambda name: True, note=print):
    self.measured, self.dry, self.note = measured.Measured(folder), dry, note
    self.began = time.time()
    self.deadline = self.began + budget - min(MARGIN, budget / 4)
    self.jobs = [job for job in pending.of(dry) if only(job.name)]
    self.current, self.process = None, None

  def run(self):
    """Does what is missing and fits; returns the names of the jobs that are left."""
    todo = self.measured.missing(self.jobs)
    while todo and time.time() < self.deadline:
      group = self._group(todo)
      if not group:
        break
      before, self.skipped = self._attempts(group), set()
      if isinstance(group[0], pending.Command):
        self._command(group[0])
      else:
        self._worker(group)
      tried = {name for name, count in self._attempts(group).items() if count != before[name]}
      if not tried | self.skipped:       # a worker that does not even begin would not the next time
        self._nothing_done()
        break
      todo = [job for job in todo if job.name not in tried | self.skipped]
    return [job.name for job in self.measured.missing(self.jobs)]

  def plan(self):
    """Yields (job, state, expected seconds, whether it fits) in the order in which things would be done."""
    left = self.deadline - time.time()
    for job in self.measured.missing(self.jobs):
      seconds = self.measured.expected(job)
      fits = seconds <= left
      left -= seconds * fits
      yield job, self.measured.state(job.name), seconds, fits

  def _nothing_done(self):
    """Raises UserError if a worker ended by itself before its first job."""
    if time.time() < self.deadline and self.process.returncode:
      raise errors.UserError(f'the process that holds the GPU ended with {self.process.returncode} before its'
                             f' first job; see {self.measured.path.with_name(LOG)}')

  def _attempts(self, group):
    return {job.name: self.measured.records.get(job.name, {}).get('at') for job in group}

  def _group(self, todo):
    """The next Command alone, or the Jobs before the next Command; of those that fit."""
    left = self.deadline - time.time()
    fitting = [job for job in todo if self.measured.expected(job) <= left]
    is_job = lambda job: not isinstance(job, pending.Command)
    return list(itertools.takewhile(is_job, fitting)) or fitting[:1]

  def _log(self):
    self.measured.path.parent.mkdir(parents=True, exist_ok=True)
    return (self.measured.path.parent / LOG).open('ab')

  def _start(self, words, **more):
    environment = os.environ | ENVIRONMENT | more.pop('environment', {})
    if self.dry:
      environment['JAX_PLATFORMS'] = 'cpu'
    return subprocess.Popen([sys.executable, *words], process_group=0, env=environment, **more)

  def _command(self, job):
    """Runs a Command until it ends or time is over."""
    self._begin(job)
    with self._log() as log:
      self.process = self._start(job.words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                                 environment=job.environment)
      try:
        text, _ = self.process.communicate(timeout=max(self._limit(job) - time.time(), 1))
      except subprocess.TimeoutExpired:
        self._stop()
        self._end(job, 'stopped')
        return
      log.write(text)
    try:
      rows = job.read(self.process.returncode, text.decode(errors='replace'))
    except ValueError as error:
      self._end(job, 'failed', error=str(error))
      return
    self._end(job, 'done', rows=rows)

  def _worker(self, group):
    """Has a worker do the jobs of `group`, until it ends, hangs or time is over."""
    reading, writing = os.pipe()
    words = ['-m', 'stmoe.bench.device.worker', '--tell', str(writing), '--deadline', str(self.deadline),
             *['--dry'] * self.dry, *(f'{job.name}={self.measured.expected(job):.1f}' for job in group)]
    with self._log() as log, os.fdopen(reading, 'rb', buffering=0) as pipe:
      self.process = self._start(words, stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=[writing])
      os.close(writing)
      by_name, self.limit = {job.name: job for job in group}, self.deadline
      for line in _lines(pipe, lambda: self.limit):
        self.limit = self._hear(json.loads(line), by_name)
      over = time.time() >= self.limit
      self._stop()
    if self.current is not None:
      late = time.time() >= self.deadline - 1
      hung = 'it took too long, and was stopped' if over else f'the worker ended: {self.process.returncode}'
      self._end(self.current, 'stopped' if late and over else 'failed', error='' if late and over else hung)

  def _hear(self, told, by_name):
    """Notes what the worker tells; returns when it must have told more."""
    if 'machine' in told:
      self._check(told['machine'])
      self.measured.on(told['machine'])
    elif 'begin' in told:
      self._begin(by_name[told['begin']])
      return self._limit(self.current)
    elif 'skip' in told:
      self.skipped.add(told['skip'])
    else:
      job = by_name[told['end']]
      self.began_job = time.time() - told['seconds']
      self._end(job, told['state'], told.get('rows', ()), told.get('error', ''))
    return self.deadline

  def _check(self, machine):
    if machine['platform'] == 'cpu' and not self.dry:
      self._stop()
      raise errors.UserError('JAX finds no GPU here; nearest: --dry (tiny shapes on a CPU), or see '
                             'docs/accelerator.md')

  def _limit(self, job):
    return min(self.deadline, time.time() + max(LEAST, PATIENCE * self.measured.expected(job)))

  def _begin(self, job):
    self.current, self.began_job = job, time.time()
    self.note(f'{time.time() - self.began:4.0f} s  {job.name} ...')

  def _end(self, job, state, rows=(), error=''):
    seconds = time.time() - self.began_job
    at = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='microseconds')
    self.measured.add(job.name, state, seconds, at, rows, error)
    self.note(f'{time.time() - self.began:4.0f} s  {job.name}: {state}{error and ", " + error[:200]}')
    self.current = None

  def _stop(self):
    """Ends the process at work, and those that it started."""
    process = self.process
    if process is None:
      return
    if process.poll() is None:
      _signal(process, signal.SIGTERM)
      try:
        process.wait(GRACE)
      except subprocess.TimeoutExpired:
        _signal(process, signal.SIGKILL)
        process.wait()
    for stream in (process.stdin, process.stdout):
      if stream:
        stream.close()

  def stopped(self):
    """Ends what runs and notes it; after a signal."""
    self._stop()
    if self.current is not None:
      self._end(self.current, 'stopped')


def _signal(process, number):
  try:
    os.killpg(process.pid, number)
  except ProcessLookupError:
    pass


def _lines(pipe, limit):
  """Yields the lines of an unbuffered pipe until it ends, or until the time limit() is over."""
  with selectors.DefaultSelector() as selector:
    selector.register(pipe, selectors.EVENT_READ)
    rest = b''
    while selector.select(max(limit() - time.time(), 0)):
      chunk = pipe.read(1 << 16)
      if not chunk:
        return
      *lines, rest = (rest + chunk).split(b'\n')
      yield from lines
