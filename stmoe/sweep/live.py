"""What a person sees of a sweep: a table that lives on a terminal, a line for each event elsewhere.

Which of them, `silence.display` says, as for training.
"""

import collections
import sys
import time

from stmoe import files
from stmoe import silence
from stmoe.analysis import table
from stmoe.runs import records
from stmoe.sweep import plan
from stmoe.sweep import work

WAITING, RUNNING, ELSEWHERE = 'waiting', 'running', 'elsewhere'      # elsewhere: another process is doing it
DONE, FAILED, STOPPED = 'done', 'failed', 'stopped'
TAIL = 1 << 22                           # bytes of metrics.jsonl that hold its last line, of many layers too
NO_TARGET = 'loss/aux_', 'loss/router_', 'loss/total'                # losses of routers, and the sum of all


def make(runs):
  """Returns the board of `runs`: Rich, Plain or Off."""
  return dict(rich=Rich, plain=Plain, off=Off)[silence.display()](runs)


def step(run):
  """Returns the last step that `run` has logged; 0 before the first."""
  return newest(run)['step']


def newest(run):
  """Returns the last line of metrics that `run` has logged, dict(step=0) before the first."""
  file = run.workdir / 'metrics.jsonl'
  try:
    with file.open('rb') as stream:
      stream.seek(max(0, file.stat().st_size - TAIL))
      lines = stream.read().splitlines()
  except OSError:                        # not there yet
    return dict(step=0)
  for text in reversed(lines):
    try:
      line = files.parse_json(text.decode())
      records.check_line(line)
      return line
    except ValueError:                   # cut short by a kill, or by the seek
      continue
  return dict(step=0)


def doing(run):
  """Returns where `run` is: 'step 120/400, loss 2.3100'; before its first line, what comes before that."""
  line = newest(run)
  if not line['step']:
    return f'no step of {run.steps:,} yet (a start is the import of libraries, data, compiling)'
  losses = [value for name, value in line.items()
            if name.startswith('loss/') and not name.startswith(NO_TARGET)]
  loss = line.get('loss/ce', losses[0] if losses else None)
  return f'step {line["step"]:,}/{run.steps:,}' + (f', loss {loss:.4f}' if records.is_number(loss) else '')


class Off:
  """Keeps the status of every run, and says only what went wrong."""

  def __init__(self, runs):
    self._runs = {run.id: run for run in runs}
    self.status = {run.id: DONE if plan.is_done(run) else WAITING for run in runs}
    self._at_first = self._steps()
    self._began = time.monotonic()

  def set(self, run, status):
    """Notes the status of a run, and tells if the status is news."""
    if self.status[run.id] != status:
      self.status[run.id] = status
      self.news(run, status)

  def news(self, run, status):
    """Says that `run` is now `status`."""
    if status == FAILED:
      self.say(failure(run))

  def say(self, text):
    """Prints lines that stay."""
    print(text, file=sys.stderr, flush=True)

  def tick(self):
    """Brings the display up to date."""

  def close(self):
    """Ends the display."""

  def counts(self):
    """Returns '3 done, 1 running, 8 waiting', and about how long all takes."""
    number = collections.Counter(self.status.values())
    parts = [f'{number[status]} {status}' for status in (DONE, RUNNING, ELSEWHERE, WAITING, STOPPED, FAILED)
             if number[status]]
    return ', '.join(parts) + self._left()

  def _steps(self):
    return sum(min(step(run), run.steps) for run in self._runs.values())

  def _left(self):
    """'; about 2 min 10 s left', from the steps that were done since this command began."""
    unfinished = [run for run in self._runs.values() if self.status[run.id] in (WAITING, RUNNING, ELSEWHERE)]
    steps_done = self._steps() - self._at_first
    if not unfinished or steps_done <= 0:
      return ''
    remaining = sum(run.steps - min(step(run), run.steps) for run in unfinished)
    return f'; about {table.duration(remaining * (time.monotonic() - self._began) / steps_done)} left'


def failure(run):
  """Returns the lines that tell of a failed run: its name, its log, and how that ends."""
  lines = [f'  | {line}' for line in work.last_lines(run)] or ['  | (it said nothing)']
  return '\n'.join([f'{run.id} failed; its log, {run.workdir / work.LOG}, ends with', *lines])


class Plain(Off):
  """A line on stderr for everything that happens, and in between where the runs at work are."""

  def __init__(self, runs):
    super().__init__(runs)
    self._silence = silence.Silence()

  def news(self, run, status):
    super().news(run, status)
    self.say(f'{run.id}: {status}  [{self.counts()}]')

  def say(self, text):
    self._silence.heard()
    super().say(text)

  def tick(self):
    working = [run for run in self._runs.values() if self.status[run.id] == RUNNING]
    if working and self._silence.due():
      self.say('\n'.join(f'{run.id}: {doing(run)}' for run in working) + f'  [{self.counts()}]')


class Rich(Off):
  """A table of the runs at work and of failed runs, above how many are done."""

  def __init__(self, runs):
    super().__init__(runs)
    from rich import console
    from rich import live
    # Drawn by `tick` alone: no thread, since processes are forked.
    self._live = live.Live(console=console.Console(stderr=True), auto_refresh=False, transient=True)
    self._live.start()
    self.tick()

  def tick(self):
    from rich import console
    from rich import table as rich_table
    drawn = rich_table.Table(box=None, pad_edge=False)
    for heading, side in (('run', 'left'), ('status', 'left'), ('now', 'left')):
      drawn.add_column(heading, justify=side)
    for run in self._runs.values():
      status = self.status[run.id]
      if status in (RUNNING, ELSEWHERE, FAILED, STOPPED):
        drawn.add_row(run.id, status, doing(run))
    self._live.update(console.Group(drawn, self.counts()), refresh=True)

  def say(self, text):
    self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)

  def close(self):
    self._live.stop()
    super().say(self.counts())
