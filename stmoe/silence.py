"""How a long job shows itself: as a bar, or in lines, which are due after some seconds without one.

$STMOE_PROGRESS may be auto (the default), rich, plain or off.
"""

import os
import sys
import time
import typing

from stmoe import errors

VARIABLE, KINDS = 'STMOE_PROGRESS', ('auto', 'rich', 'plain', 'off')
FIRST, MOST = 10.0, 60.0                 # seconds of silence before a line, at first and in the end


def display() -> str:
  """Returns what $STMOE_PROGRESS says: 'rich', 'plain' or 'off'; by itself a terminal has what is rich."""
  kind = os.environ.get(VARIABLE) or 'auto'
  if kind not in KINDS:
    raise errors.UserError(f'${VARIABLE}={kind}{errors.nearest(kind, KINDS)} (there are: {", ".join(KINDS)})')
  return kind if kind != 'auto' else 'rich' if sys.stderr.isatty() else 'plain'


class Silence:
  """How long nothing was said. A line is due after FIRST seconds, later ones after up to MOST."""

  def __init__(self):
    self._since, self._patience = time.monotonic(), FIRST

  def heard(self) -> None:
    """Notes that something was said."""
    self._since = time.monotonic()

  def due(self) -> bool:
    """Returns whether a line is due; whoever asks says it."""
    if time.monotonic() - self._since < self._patience:
      return False
    self.heard()
    self._patience = min(1.5 * self._patience, MOST)
    return True


def telling(say: typing.Callable[[str], typing.Any]) -> typing.Callable[[str], None]:
  """Returns tell(text), which calls `say` with the text when a line is due."""
  silence = Silence()

  def tell(text):
    if silence.due():
      say(text)
  return tell
