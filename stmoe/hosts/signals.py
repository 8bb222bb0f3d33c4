"""SIGTERM and Ctrl-C as a wish that the loop grants between two steps."""

import math
import os
import signal
import sys
import threading
import time

# What a batch system should read as "put me back into the queue", and what shells mean by Ctrl-C.
EXIT_CODES = {signal.SIGTERM: 85, signal.SIGINT: 130}


class Signals:
  """Context in which the first SIGTERM or Ctrl-C sets `code`; a second Ctrl-C interrupts at once.

  Outside the main thread, where Python delivers no signals, it does nothing.

  Args:
    twice: seconds in which a second Ctrl-C counts as the first: a job's Ctrl-C may arrive by two ways.
  """

  def __init__(self, twice=0.0):
    self.code = 0
    self._twice = twice
    self._before = {}
    self._at = -math.inf

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      self._before = {s: signal.signal(s, self._handle) for s in EXIT_CODES}
    return self

  def __exit__(self, *error):
    for s, handler in self._before.items():
      signal.signal(s, handler)

  def _handle(self, number, frame):
    is_again, self._at = time.monotonic() - self._at > self._twice, time.monotonic()
    if self.code and number == signal.SIGINT and is_again:
      raise KeyboardInterrupt
    self.code = EXIT_CODES[number]
    # Not print: the signal may have come in the middle of a print.
    os.write(sys.__stderr__.fileno(), f'\n{signal.Signals(number).name}: saving after this step\n'.encode())
