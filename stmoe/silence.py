"""When a long job has to say something where nobody sees a bar: after some seconds without a line."""

import time
import typing

FIRST, MOST = 10.0, 60.0                 # seconds of silence before a line, at first and in the end


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
