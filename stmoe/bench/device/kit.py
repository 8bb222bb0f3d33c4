"""Does what a directory lacks, in order of worth, until the budget ends; every record is saved at once.

Every job has a process of its own, several at a time, which traces and compiles. Threads of one process would
not do: tracing is Python, and Python runs one thread at a time. While a job is timed all other processes are
stopped where they are. A process may crash, hang or break the GPU's context. Then the record of its job says
so, and the other jobs are done. Jobs that failed are tried once more at the end, one at a time, since
processes that wait hold some of the GPU's memory.
"""

import datetime
import os
import time

from stmoe import errors
from stmoe.bench.device import pending
from stmoe.bench.device import measured
from stmoe.bench.device import running

LOG = 'log.txt'
MARGIN = 10.0                            # seconds of the budget kept to stop processes and write the tables
HANGING = 4.0                            # times the expected seconds after which a job hangs, and at least
LEAST = 90.0                             # so many seconds
PATIENCE = 100.0                         # seconds that jobs wait for the programs of a more valuable job
PROCESSES = max((os.cpu_count() or 2) // 2, 2)
PAUSE = 0.1                              # seconds between two looks at the processes
# JAX leaves memory to PyTorch and to other processes; what was compiled need not be compiled again.
ENVIRONMENT = dict(XLA_PYTHON_CLIENT_MEM_FRACTION='0.6', XLA_PYTHON_CLIENT_PREALLOCATE='false',
                   JAX_COMPILATION_CACHE_DIR='.cache/device', JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='1',
                   TF_CPP_MIN_LOG_LEVEL='2')


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
    self.running, self.timed, self.log = [], None, None
    self.failed, self.processes = [], PROCESSES

  def run(self):
    """Does what is missing and fits; returns the names of the jobs that are left."""
    todo = self.measured.missing(self.jobs)
    try:
      while time.time() < self.deadline:
        todo = self._begin(todo)
        if not self.running:
          if not self.failed:
            break
          todo, self.failed, self.processes = self.failed, [], 1     # once more, with all the memory
        self._listen()
        turn = self._turn()
        if turn is not None:
          self._time(turn)
        time.sleep(PAUSE)
    finally:
      self._stop()
    return [job.name for job in self.measured.missing(self.jobs)]

  def plan(self):
    """Yields (job, state, expected seconds, whether it fits) in the order in which things would be done."""
    left = self.deadline - time.time()
    for job in self.measured.missing(self.jobs):
      seconds = self.measured.expected(job)
      fits = seconds <= left
      left -= seconds * fits
      yield job, self.measured.state(job.name), seconds, fits

  def _fits(self, job):
    return self.measured.expected(job) <= self.deadline - time.time()

  def _begin(self, todo):
    """Starts processes for the first of `todo`; returns those that are left."""
    while todo and len(self.running) < self.processes and not any(one.job.alone for one in self.running):
      if todo[0].alone and self.running:
        break
      job, *todo = todo
      if self._fits(job):
        self.running.append(self._start(job))
    return todo

  def _start(self, job):
    self.measured.path.parent.mkdir(parents=True, exist_ok=True)
    self.log = self.log or (self.measured.path.parent / LOG).open('ab')
    environment = os.environ | ENVIRONMENT | (dict(JAX_PLATFORMS='cpu') if self.dry else {})
    one = running.Running(job, ['--dry'] * self.dry, environment, self.log)
    if one.is_command:
      self._say(f'{job.name} ...')
    return one

  def _listen(self):
    """Notes what the processes told, and which have ended."""
    for one in list(self.running):
      over = one.over                    # before its last words are read
      for told in one.told():
        self._hear(one, told)
      if one in self.running and one.is_command and over:
        self._command_ended(one)
      elif one in self.running and over:
        self._died(one)
      elif one in self.running and one.is_command and time.time() > self._limit(one):
        self._end(one, 'stopped', time.time() - one.began)

  def _hear(self, one, told):
    if 'machine' in told:
      self._check(told['machine'])
      self.measured.on(told['machine'])
    elif 'ready' in told:
      one.ready = True
    else:
      self._end(one, told['state'], told['seconds'], told.get('rows', ()), told.get('error', ''))

  def _check(self, machine):
    if machine['platform'] == 'cpu' and not self.dry:
      raise errors.UserError('JAX finds no GPU here; nearest: --dry (tiny shapes on a CPU), or see '
                             'docs/accelerator.md')

  def _command_ended(self, one):
    seconds = time.time() - one.began
    try:
      self._end(one, 'done', seconds, one.job.read(one.process.returncode, one.text()))
    except ValueError as error:
      self._end(one, 'failed', seconds, error=str(error))

  def _died(self, one):
    """Notes that a Job's process ended without a word; raises UserError if none has told of its machine."""
    if not self.measured.machine:
      raise errors.UserError(f'the process that holds the GPU ended with {one.process.returncode} before its'
                             f' first job; see {self.measured.path.with_name(LOG)}')
    self._end(one, 'failed', time.time() - one.began, error=f'its process ended: {one.process.returncode}')

  def _turn(self):
    """The first job that may be timed, if it is the most valuable of those begun, or these take long."""
    begun = [one for one in self.running if not one.is_command]
    ready = [one for one in begun if one.ready]
    late = time.time() > self.began + PATIENCE
    return ready[0] if ready and (late or ready[0] is begun[0]) else None

  def _time(self, one):
    """Lets a Job be timed, while the other processes stand still."""
    if not self._fits(one.job):
      self._drop(one)
      return
    others = [other for other in self.running if other is not one]
    for other in others:
      other.pause()
    self._say(f'{one.job.name} ...')
    self.timed, one.began = one, time.time()
    one.go()
    while one in self.running and time.time() < self._limit(one):
      over = one.over
      for told in one.told():
        self._hear(one, told)
      if one in self.running and over:
        self._died(one)
      time.sleep(PAUSE / 10)
    if one in self.running:
      late = time.time() >= self.deadline
      self._end(one, 'stopped' if late else 'failed', time.time() - one.began,
                error='' if late else 'it took too long, and was stopped')
    self.timed = None
    for other in others:
      other.resume()

  def _limit(self, one):
    return min(self.deadline, one.began + max(LEAST, HANGING * self.measured.expected(one.job)))

  def _say(self, what):
    self.note(f'{time.time() - self.began:4.0f} s  {what}')

  def _end(self, one, state, seconds, rows=(), error=''):
    """Saves the record of a job, and ends its process."""
    self._drop(one)
    at = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='microseconds')
    self.measured.add(one.job.name, state, seconds, at, rows, error)
    if state == 'failed' and not one.is_command and self.processes > 1:
      self.failed.append(one.job)
    self._say(f'{one.job.name}: {state}{error and ", " + error[:200]}')

  def _drop(self, one):
    self.running.remove(one)
    one.stop()

  def _stop(self):
    """Ends all processes; what was timed, and commands, are noted as stopped."""
    for one in list(self.running):
      if one.is_command or one is self.timed:
        self._end(one, 'stopped', time.time() - one.began)
      else:
        self._drop(one)
    if self.log:
      self.log.close()
