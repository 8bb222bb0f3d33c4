"""Services that show the metrics of a run while it trains: a service is a file, named in log.writers.

metrics.jsonl is the source of truth, and is always written. A writer copies its lines to a service, and with
them the loads of the experts, which are in router_stats.

A killed process may have sent less than it was told, and more than it noted. So an opened writer asks which
steps the service has, or takes steps back. All later steps are sent then. Every step is there once, however
the run was killed. The file of a writer says what its service cannot promise.

The file writers.json of a run directory says per writer what the service calls the run, and up to which step
the writer has sent.
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
  """One service; an object of its class is opened like this, and then gets the run's steps in order.

  The module of a writer has PACKAGE, the name of what it imports. The extra of stmoe that installs that is
  called like the writer.

  id:    what the service calls the run; kept, and given back when the run continues.
  holds: up to this step the service has everything. Where a package sends in the background, an opened writer
    asks the service, since a killed process noted too much. Only later steps are sent: a writer takes back,
    or leaves out, what the service has of them.
  """
  id: str
  holds: int

  def __init__(self, path: pathlib.Path, step: int, *, id: str, holds: int, name: str, config: dict) -> None:
    """Opens the service for the run directory `path`, which continues after `step`.

    id, holds: as writers.json has them; '' and -1 at first.
    name:      of the run, for people.
    config:    dict field -> value of the whole configuration.
    """

  def write(self, step: int, values: dict, loads: dict) -> None:
    """Sends a step, if the service can in one piece: so it is there whole or not at all.

    values: the numbers of the line of metrics.jsonl, as `records.flat` has it, none of them None; {} where
      metrics.jsonl has no line.
    loads:  dict layer -> f32[E], the share of the tokens of every expert; {} where router_stats has no file.
    """

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
    self._loads: dict = {}               # step -> loads that wait for the line of their step, or a later one
    for name in names(cfg):
      self._guarded(name, self._start)
    self._keep()                         # the ids, so that a kill from here on leaves no second run
    self._catch_up(lines)

  def _start(self, name):
    kept = self._kept.get(name, dict(id='', holds=-1))
    self._open[name] = lookup.constructor('writer', name)(
        self._path, self._step, id=kept['id'], holds=kept['holds'], name=self._path.name, config=self._fields)

  def _catch_up(self, lines):
    """Sends what the services lack of `lines` and of router_stats."""
    held = min((writer.holds for writer in self._open.values()), default=self._step)
    try:
      for step, loads, _ in records.stats(self._path, after=held):
        self.loads(step, loads)
    except errors.Damaged as error:
      self._say(f'note: log.writers: {error}; later loads of experts are not sent')
    for line in lines:
      self._send_line(line['step'], line)
    self._keep()

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
    """Sends a line, and loads up to its step, to every writer that does not have them yet."""
    self._send_line(step, line)
    self._keep()

  def _send_line(self, step, line):
    for earlier in sorted(each for each in self._loads if each < step):      # steps without a line
      self._send(earlier, {}, self._loads.pop(earlier))
    values = _known({name: value for name, value in line.items() if name != 'step'})
    self._send(step, values, self._loads.pop(step, {}))

  def _send(self, step, values, loads):
    def send(writer):
      if step > writer.holds:
        writer.write(step, values, loads)
        writer.holds = step
    self._each(send)

  def _keep(self):
    """Writes writers.json, if that changes."""
    kept = self._kept | {name: dict(id=writer.id, holds=writer.holds) for name, writer in self._open.items()}
    if kept != self._kept:
      self._kept = kept
      files.write_json(self._path / FILE, kept)

  def loads(self, step, loads):
    """Takes dict layer -> f32[E] of a step; they are sent with its line, or with the next if it has none."""
    self._loads[step] = loads

  def finish(self, final):
    """Tells every writer the last values of a finished run."""
    self._each(lambda writer: writer.finish(_known(final)))

  def close(self):
    """Closes all writers."""
    self._each(lambda writer: writer.close())


def _known(line):
  """The numbers of a line of metrics by their names, without those that are None."""
  return {name: value for name, value in records.flat(line).items() if value is not None}
