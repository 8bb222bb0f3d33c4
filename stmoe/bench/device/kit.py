"""Does what a directory lacks, in order of worth, until the budget ends; every record is saved at once.

Every job has a process of its own, several at a time, which traces and compiles. Threads of one process would
not do: tracing is Python, and Python runs one thread at a time. While a job is timed all other processes are
stopped where they are. A process may crash, hang or break the GPU's context. Then the record of its job says
so, and the other jobs are done. Jobs that failed by themselves are tried once more at the end, one at a time:
processes that wait hold some of the GPU's memory. What hangs would take as long again, and is not.
"""

import datetime
import math
import os
import time

from stmoe import errors
from stmoe.bench.device import pending
from stmoe.bench.device import measured
from stmoe.bench.device import running
from stmoe.bench.device import worker

LOG = 'log.txt'
MARGIN = 10.0                            # seconds of the budget kept to stop processes and write the tables
WHOLE = 0.9                              # of a call's time: no job is expected to take more
COMPILING = 240.0                        # seconds after which a job that has no programs yet hangs
HANGING = 4.0                            # times the expected seconds after which a job hangs, once at work,
LEAST = 90.0                             # and at least so many seconds
PATIENCE = 100.0                         # seconds of a call; later nothing waits for a more valuable job
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
    self.running, self.log = [], None
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
      seconds = self._expected(job)
      fits = seconds <= left
      left -= seconds * fits
      yield job, self.measured.state(job.name), seconds, fits

  def _expected(self, job):
    """The seconds that a job may take, so many at most that a call which begins with it has them."""
    return min(self.measured.expected(job), WHOLE * (self.deadline - self.began))

  def _fits(self, job):
    return self._expected(job) <= self.deadline - time.time()

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
    """Notes what the processes told, and which have ended or hang."""
    for one in list(self.running):
      self._look(one)

  def _look(self, one):
    over = one.over                      # before its last words are read
    for told in one.told():
      self._hear(one, told)
    if one not in self.running:
      return
    if over and one.is_command:
      self._command_ended(one)
    elif over:
      self._died(one)
    elif one.seconds > self._limit(one):
      compiling = one.stage == 'compiling'
      self._end(one, 'failed', one.seconds, error=f'not compiled after {COMPILING:g} s' if compiling else
                'it took too long, and was stopped')

  def _hear(self, one, told):
    if 'machine' in told:
      self._check(told['machine'])
      self.measured.on(told['machine'])
    elif 'ready' in told:
      one.stage = 'ready'
    else:
      self._job_ended(one, **told)

  def _check(self, machine):
    if machine['platform'] == 'cpu' and not self.dry:
      raise errors.UserError('JAX finds no GPU here; nearest: --dry (tiny shapes on a CPU), or see '
                             'docs/accelerator.md')

  def _job_ended(self, one, state, seconds, rows=(), error=''):
    """Notes how a Job ended: memory that others held is no result, memory that is not there is one."""
    if self.processes > 1:
      error = error or measured.out_of_memory(rows)
    if error:
      self._failed(one, seconds, error, rows)
    else:
      self._end(one, state, seconds, rows)

  def _command_ended(self, one):
    rows, error = (), ''
    try:
      rows = one.job.read(one.process.returncode, one.text())
    except pending.Failed as failed:
      rows, error = failed.rows, str(failed)
    except Exception as damaged:  # noqa: BLE001 what it left may be: one line, and on
      error = worker.said(damaged)
    self._end(one, 'failed' if error else 'done', one.seconds, rows, error)

  def _died(self, one):
    """Notes that a Job's process ended without a word; raises UserError if none has told of its machine."""
    if not self.measured.machine:
      raise errors.UserError(f'the process that holds the GPU ended with {one.process.returncode} before its'
                             f' first job; see {self.measured.path.with_name(LOG)}')
    self._failed(one, one.seconds, f'its process ended: {one.process.returncode}')

  def _failed(self, one, seconds, error, rows=()):
    """Notes a Job that failed by itself, which is tried once more with all the memory."""
    self._end(one, 'failed', seconds, rows, error)
    if self.processes > 1:
      self.failed.append(one.job)

  def _turn(self):
    """The first job that may be timed, if it is the most valuable of those begun, or these take long."""
    begun = [one for one in self.running if not one.is_command]
    ready = [one for one in begun if one.stage == 'ready']
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
    one.go()
    while one in self.running and time.time() < self.deadline:
      self._look(one)
      time.sleep(PAUSE / 10)
    for other in others:
      other.resume()

  def _limit(self, one):
    """The seconds of its stage after which a process hangs."""
    working = max(LEAST, HANGING * self._expected(one.job))
    return dict(compiling=COMPILING, ready=math.inf, working=working)[one.stage]

  def _say(self, what):
    self.note(f'{time.time() - self.began:4.0f} s  {what}')

  def _end(self, one, state, seconds, rows=(), error=''):
    """Saves the record of a job, and ends its process."""
    self._drop(one)
    at = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='microseconds')
    self.measured.add(one.job.name, state, seconds, at, rows, error)
    self._say(f'{one.job.name}: {state}{error and ", " + error[:200]}')

  def _drop(self, one):
    self.running.remove(one)
    one.stop()

  def _stop(self):
    """Ends all processes; what was at work is noted as stopped."""
    for one in list(self.running):
      if one.stage == 'working':
        self._end(one, 'stopped', one.seconds)
      else:
        self._drop(one)
    if self.log:
      self.log.close()
