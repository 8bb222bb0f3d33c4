"""Services that show the metrics of a run while it trains: a service is a file, named in log.writers.

metrics.jsonl is the source of truth, and is always written. A writer copies its lines to a service. The file
writers.json of a run directory says per writer what the service calls the run, and up to which step the
service has the lines. So a continued run sends the lines that are missing, and none a second time.
"""

import importlib.util
import pathlib
import typing
from typing import Protocol

from stmoe import errors
from stmoe import experiment
from stmoe import files
from stmoe import lookup
from stmoe import sections
from stmoe.runs import records

FILE = 'writers.json'


class Writer(Protocol):
  """One service; an object of its class is opened like this, and then gets the run's lines in order.

  The module of a writer has PACKAGE, the name of what it imports. The extra of stmoe that installs that is
  called like the writer.

  id:    what the service calls the run; kept, and given back when the run continues.
  holds: the last step whose lines the service has. A service that can take lines back says fewer than it was
    told.
  """
  id: str
  holds: int

  def __init__(self, path: pathlib.Path, step: int, *, id: str, holds: int, name: str, config: dict) -> None:
    """Opens the service for the run directory `path`, which continues after `step`.

    id, holds: as they were when the run stopped; '' and -1 at first.
    name:      of the run, for people.
    config:    dict field -> value of the whole configuration.
    """

  def write(self, step: int, values: dict) -> None:
    """Sends the numbers of a line of metrics.jsonl, as `records.flat` has it; none of them is None."""

  def loads(self, step: int, load: dict) -> None:
    """Sends dict layer -> f32[E]: the share of the tokens of every expert."""

  def finish(self, final: dict) -> None:
    """Sends the last value of every metric of a finished run."""

  def close(self) -> None:
    """Ends what goes on in the background."""


def names(cfg: typing.Any) -> tuple:
  """Returns the writers of a configuration; without a section `log` they are its default."""
  return tuple(cfg.get('log', {}).get('writers', sections.TABLES['log']['writers'].default))


def check(cfg: typing.Any) -> None:
  """Raises UserError for a writer that does not exist, or whose package is not installed."""
  for name in names(cfg):
    module = lookup.module('writer', name)
    if not importlib.util.find_spec(module.PACKAGE):
      raise errors.UserError(f'log.writers={name}: {module.PACKAGE} is not installed; pip install '
                             f'"stmoe[{name}]", or leave {name} out')


class Writers:
  """All writers of a run. One that fails is left, with a line of `say`: a run outlives its services.

  Args:
    path:   the run directory.
    step:   the run continues after this step.
    lines:  the lines of metrics.jsonl up to `step`, dicts with `step`.
    cfg:    the configuration.
    say:    called with a text.
  """

  def __init__(self, path, step, lines, cfg, say):
    self._path, self._step, self._say = pathlib.Path(path), step, say
    self._fields = experiment.flatten(cfg)
    file = self._path / FILE
    self._kept = files.read_json(file) if file.exists() else {}
    self._open: dict = {}
    for name in names(cfg):
      self._guarded(name, self._start)
    for line in lines:
      self.write(line['step'], line)

  def _start(self, name):
    kept = self._kept.get(name, dict(id='', holds=-1))
    self._open[name] = lookup.constructor('writer', name)(
        self._path, self._step, id=kept['id'], holds=kept['holds'], name=self._path.name, config=self._fields)

  def _guarded(self, name, act):
    """Calls `act` with the name of a writer, which is left if that fails."""
    try:
      act(name)
    except Exception as error:           # whatever a service's package may raise
      self._open.pop(name, None)
      reason = (str(error).splitlines() or [''])[0]
      self._say(f'note: log.writers: {name} gets no more lines ({type(error).__name__}: {reason}); '
                'metrics.jsonl has them all, and the next start of this run sends what is missing')

  def _each(self, act):
    for name in list(self._open):
      self._guarded(name, lambda name: act(self._open[name]))

  def write(self, step, line):
    """Sends a line to every writer that does not have it yet."""
    values = _known({name: value for name, value in line.items() if name != 'step'})

    def send(writer):
      if step > writer.holds:
        writer.write(step, values)
        writer.holds = step
    self._each(send)
    kept = self._kept | {name: dict(id=writer.id, holds=writer.holds) for name, writer in self._open.items()}
    if kept != self._kept:
      self._kept = kept
      files.write_json(self._path / FILE, kept)

  def loads(self, step, load):
    """Sends dict layer -> f32[E] to every writer."""
    self._each(lambda writer: writer.loads(step, load))

  def finish(self, final):
    """Tells every writer the last values of a finished run."""
    self._each(lambda writer: writer.finish(_known(final)))

  def close(self):
    """Closes all writers."""
    self._each(lambda writer: writer.close())


def _known(line):
  """The numbers of a line of metrics by their names, without those that are None."""
  return {name: value for name, value in records.flat(line).items() if value is not None}
