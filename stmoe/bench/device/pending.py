"""What the kit does: jobs that are timed, and commands."""

from typing import Callable, NamedTuple


class Job(NamedTuple):
  """Work of a process that is timed, which ends in rows.

  name:    'layers S3': the piece and the rest.
  seconds: that the timing may take where it was never done; the compilation comes before.
  begin:   function of `submit` that returns (futures, finish). `submit(make)` has a thread call make() and
    returns the Future. `finish()` returns the rows, dicts for JSON, once all futures are done; it times.
  alone:   whether no other process may run beside it.
  """
  name: str
  seconds: float
  begin: Callable
  alone: bool = False


class Failed(ValueError):
  """What a Command did does not count as done: why, in a line, and the `rows` that it has all the same."""

  def __init__(self, why, rows=()):
    super().__init__(why)
    self.rows = rows


class Command(NamedTuple):
  """Work of a process of its own, which ends in rows.

  name:    as of a Job; seconds: of the whole command.
  words:  of the command line, after the Python that runs.
  read:   function of (exit code, the output's text) that returns the rows, or raises Failed.
  environment: variables that are set.
  alone:  whether no other process may run beside it; of a command that times something itself.
  """
  name: str
  seconds: float
  words: tuple
  read: Callable
  environment: dict = {}
  alone: bool = False


def of(dry=False):
  """Returns the list of all Jobs and Commands of `pieces`, in order of worth; tiny ones for a `dry` run."""
  from stmoe import lookup
  pieces = [lookup.module('piece', name) for name in lookup.available('piece')]
  return [job for piece in sorted(pieces, key=lambda piece: piece.WORTH) for job in piece.jobs(dry)]


def piece(name):
  """Returns the name of the piece that the job called `name` is of.

  >>> piece('layers S3')
  'layers'
  """
  return name.partition(' ')[0]
