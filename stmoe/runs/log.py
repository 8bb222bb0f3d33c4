"""What a run says to people: log.txt, and the terminal."""

import os
import pathlib
import sys
import time

from stmoe import files


class Silence:
  """Stands for Metrics, Writers and Log where another process writes them."""
  lines = ()
  show = None

  def write(self, step, values):
    """Returns the line that is written elsewhere."""
    return {'step': step} | values

  def loads(self, step, load):
    """Sends nothing."""

  def finish(self, final):
    """Sends nothing."""

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
    if not self._stream.closed:
      self._stream.write(f'{time.strftime("%Y-%m-%d %H:%M:%S")} {text}\n')
      self._stream.flush()
    if self.show is None:
      print(text, file=sys.stderr, flush=True)
    else:
      self.show.say(text)

  def close(self):
    """Closes log.txt; later lines go to stderr only."""
    self._stream.close()
