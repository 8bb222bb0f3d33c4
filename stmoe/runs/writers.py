"""Where metrics go: metrics.jsonl (the source of truth), TensorBoard, router_stats, log.txt."""

import io
import json
import math
import os
import pathlib
import sys
import time

import numpy as np

from stmoe import files
from stmoe.runs import records


class Metrics:
  """metrics.jsonl and TensorBoard of a run that continues after `step`.

  Lines of later steps, written by a run that was killed before its next checkpoint, are cut
  off: the continued run writes them again. `say` is called with a line about each damaged line.
  """

  def __init__(self, path, step, say=print):
    self._file = pathlib.Path(path) / 'metrics.jsonl'
    damage = lambda line: say(f'note: {line}; it is left out')
    self.lines = [line for line in records.metrics(path, damage) if line['step'] <= step]
    files.write_text(self._file, ''.join(json.dumps(line) + '\n' for line in self.lines))
    self._board = _board(path, step)

  def write(self, step, values):
    """Appends one line and returns it; numbers that are not finite become null."""
    line = {'step': step} | plain(values)
    files.append_line(self._file, line)
    for name, value in line.items():
      if value is not None:
        self._board.add_scalar(name, value, step)
    return line

  def close(self):
    """Flushes and closes TensorBoard's file."""
    self._board.close()


def plain(values):
  """Returns `values`, numbers by name, as JSON holds them: a number that is not finite is None."""
  return {name: _plain(value) for name, value in values.items()}


def _board(path, step):
  import tensorboardX
  folder = str(pathlib.Path(path) / 'tensorboard')
  return tensorboardX.SummaryWriter(folder, purge_step=step + 1, flush_secs=30)


def _plain(value):
  """A JSON number (ints stay ints), or None."""
  if value is None or isinstance(value, int):
    return value
  value = float(value)
  return float(f'{value:.9g}') if math.isfinite(value) else None


def write_router_stats(path, step, load, states):
  """Writes router_stats/<step>.npz: moe_load f32[L,E] and the names of the L layers.

  Rows of layers with fewer experts end in NaN. The routers' state (`stmoe.router_state.vectors`) stands
  beside the loads, f32[E] or f32[] under state/<layer>/<path in the layer>.
  """
  folder = pathlib.Path(path) / 'router_stats'
  folder.mkdir(exist_ok=True)
  width = max(len(row) for row in load.values())
  rows = [np.pad(np.float32(row), (0, width - len(row)), constant_values=np.nan) for row in load.values()]
  state_arrays = {f'state/{layer}/{name}': np.float32(v) for layer, values in states.items()
           for name, v in values.items()}
  content = io.BytesIO()
  np.savez(content, moe_load=np.stack(rows), layers=np.array(list(load)), **state_arrays)
  files.write_bytes(folder / f'{step}.npz', content.getvalue())


def write_pictures(path, step, pictures):
  """Writes pictures.npz: the arrays [n,...] by name that a target has to show of step `step`."""
  content = io.BytesIO()
  np.savez(content, step=step, **pictures)
  files.write_bytes(pathlib.Path(path) / 'pictures.npz', content.getvalue())


def drop_router_stats(path, step):
  """Removes the router_stats of steps after `step`, and what a kill left half written."""
  for file in (pathlib.Path(path) / 'router_stats').glob('*'):
    later = file.suffix == '.npz' and file.stem.isdecimal() and int(file.stem) > step
    if later or file.suffix == '.tmp' or file.name.endswith('.tmp.npz'):
      file.unlink()


class Silence:
  """Stands for Metrics and Log where another process writes them."""
  lines = ()
  show = None

  def write(self, step, values):
    """Returns the line that is written elsewhere."""
    return {'step': step} | values

  def __call__(self, text):
    """Says nothing."""

  def close(self):
    """Has nothing to close."""


class Log:
  """Lines for people: to log.txt with the time, and to `show`, which a display may replace."""

  def __init__(self, path):
    descriptor = files.open_to_append(pathlib.Path(path) / 'log.txt')
    self._stream = os.fdopen(descriptor, 'a', encoding='utf-8', errors='backslashreplace')
    self.show = None

  def __call__(self, text):
    self._stream.write(f'{time.strftime("%Y-%m-%d %H:%M:%S")} {text}\n')
    self._stream.flush()
    if self.show is None:
      print(text, file=sys.stderr, flush=True)
    else:
      self.show.say(text)

  def close(self):
    """Closes log.txt; later lines go to stderr only."""
    self._stream.close()
