"""metrics.jsonl of a run: a line of numbers for every step that is logged; the source of truth."""

import json
import math
import pathlib

from stmoe import files
from stmoe.runs import records


class Metrics:
  """metrics.jsonl of a run that continues after `step`.

  Lines of later steps, written by a run that was killed before its next checkpoint, are cut
  off: the continued run writes them again. `say` is called with a line about each damaged line.
  """

  def __init__(self, path, step, say=print):
    self._file = pathlib.Path(path) / 'metrics.jsonl'
    damage = lambda line: say(f'note: {line}; it is left out')
    self.lines = [line for line in records.metrics(path, damage) if line['step'] <= step]
    files.write_text(self._file, ''.join(json.dumps(line) + '\n' for line in self.lines))

  def write(self, step, values):
    """Appends one line and returns it; numbers that are not finite become null."""
    line = {'step': step} | plain(values)
    files.append_line(self._file, line)
    return line


def plain(values):
  """Returns `values`, numbers by name, as JSON holds them: a number that is not finite is None.

  The key `time` holds numbers by name, too.
  """
  return {name: _plain(value) for name, value in values.items()}


def _plain(value):
  """A JSON number (ints stay ints), or None; a dict of them of a dict."""
  if isinstance(value, dict):
    return plain(value)
  if value is None or isinstance(value, int):
    return value
  value = float(value)
  return float(f'{value:.9g}') if math.isfinite(value) else None
