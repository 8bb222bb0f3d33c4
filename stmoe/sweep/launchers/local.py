"""Processes of this machine, `jobs` at a time."""

import signal
import time

from stmoe import ranges
from stmoe.hosts import signals
from stmoe.sweep import live as progress
from stmoe.sweep import work


def launch(runs, board, *, jobs: ranges.Count = 1, poll: ranges.Positive = 0.5):
  """Returns 0 when every run was tried, or the code of the signal after which all were stopped and saved.

  Args:
    runs:  list of plan.Run that are not done.
    board: progress.Off or another board.
    jobs:  how many runs at a time.
    poll:  seconds between two looks at the runs.
  """
  waiting = list(runs)
  children: list = []
  with signals.Signals() as stop:
    try:
      while (waiting or children) and not stop.code:
        children = _alive(children, board)
        _start(waiting, children, jobs, board)
        board.tick()
        time.sleep(poll if waiting or children else 0)
    except KeyboardInterrupt:            # the second Ctrl-C came before the first was seen
      pass
    if stop.code:
      _stop(children, board, stop, poll)
  return stop.code


def _start(waiting, children, jobs, board):
  """Moves runs from `waiting` to `children` while there is room; runs of other processes stay."""
  for run in list(waiting):
    if len(children) >= jobs:
      return
    try:
      children.append(work.Child(run))
    except BlockingIOError:
      board.set(run, progress.ELSEWHERE)
      continue
    board.set(run, progress.RUNNING)
    waiting.remove(run)


def _alive(children, board, ended=progress.FAILED):
  """The children that go on; of the others the board learns that they are done or, if not, `ended`."""
  alive = []
  for child in children:
    code = child.poll()
    if code is None:
      alive.append(child)
    else:
      board.set(child.run, ended if code or child.left else progress.DONE)
  return alive


def _stop(children, board, stop, poll):
  """Asks all children to save and waits for them; a second Ctrl-C interrupts them at once."""
  number = next(number for number, code in signals.EXIT_CODES.items() if code == stop.code)
  board.say(f'stopping {len(children)} run(s); they save first')
  while children:
    try:
      for child in children:
        child.stop(number)
      while children:
        children = _alive(children, board, progress.STOPPED)
        time.sleep(min(poll, 0.1))
    except KeyboardInterrupt:
      number = signal.SIGINT
