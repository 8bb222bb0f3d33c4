"""Threads that compile ahead, and stand still while something is timed."""

import concurrent.futures
import contextlib
import threading


class Compilers:
  """A pool of threads that traces and compiles; context, which waits for what runs and drops the rest.

  A compiler tries programs on the GPU that it compiles for, and takes all CPUs. Timing beside it would
  measure that. So timing waits until the programs being compiled are done, and no other is begun meanwhile.
  """

  def __init__(self, threads):
    self._pool = concurrent.futures.ThreadPoolExecutor(threads)
    self._change = threading.Condition()
    self._running, self._quiet = 0, False

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self._pool.shutdown(cancel_futures=True)

  def submit(self, make):
    """Returns the Future of make(), which a thread calls; first come, first served."""
    return self._pool.submit(self._run, make)

  def _run(self, make):
    with self._change:
      self._change.wait_for(lambda: not self._quiet)
      self._running += 1
    try:
      return make()
    finally:
      with self._change:
        self._running -= 1
        self._change.notify_all()

  @contextlib.contextmanager
  def quiet(self):
    """Context in which no thread computes; entering it waits for those that do."""
    with self._change:
      self._quiet = True
      self._change.wait_for(lambda: not self._running)
    try:
      yield
    finally:
      with self._change:
        self._quiet = False
        self._change.notify_all()
