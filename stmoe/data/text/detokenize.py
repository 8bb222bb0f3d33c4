"""Texts that grow by an id at a time, decoded without decoding all of them again."""

from collections.abc import Callable
from collections.abc import Set
import os

BROKEN = '\ufffd'                        # what decoders write for bytes that are no character


class Stream:
  """A function of the next id of a text that returns the text which this id brings.

  An incomplete character is held back until its last id. Only the last few ids are decoded again: those that
  brought the last two parts of the text. So the cost grows with the text's length and no faster. The parts
  are what decoding all ids so far would add. The exception is a byte that breaks a character already given.

  Args:
    decode: list of ids -> text.
    silent: ids that `decode` leaves out.
  """

  def __init__(self, decode: Callable[[list[int]], str], silent: Set[int] = frozenset()):
    self._decode, self._silent = decode, silent
    self._ids: list[int] = []            # whose text may still be decoded again
    self._known = 0                      # so many of them have brought `_said`
    self._said = ''

  def __call__(self, token: int) -> str:
    """Returns the text, maybe '', that id `token` brings."""
    if int(token) in self._silent:
      return ''
    self._ids.append(int(token))
    text = self._decode(self._ids)
    return '' if len(text) <= len(self._said) or text.endswith(BROKEN) else self._give(text)

  def rest(self) -> str:
    """Returns the text that is still held back, at the end of all ids."""
    return self._give(self._decode(self._ids))

  def _give(self, text):
    """What `text`, of the ids in hand, has more than was said; ids from before the last part are let go."""
    new = text[len(os.path.commonprefix([text, self._said])):]
    self._ids = self._ids[self._known:]
    self._known, self._said = len(self._ids), self._decode(self._ids)
    return new
