"""The order in which the rows of a large corpus are trained on: window after window, mixed within each.

A window is a chunk of the corpus (chunks.py), streamed or a shard: the batches are the same. Every epoch goes
through the windows in the order of the corpus; its rows come in another order in each. At most two windows
are in memory.
"""

import queue
import threading

import grain

from stmoe import errors
from stmoe.data import bar as progress
from stmoe.data.large import chunks
from stmoe.data.large import corpora
from stmoe.data.text import stream as streams


class Closed(Exception):
  """Ends a thread that makes batches, of which no more are wanted."""


class FromShards:
  """Gives (stream, place behind it) of a window, or None behind the last; a window is a shard.

  begin: () -> function that raises where shards are awaited that nobody makes; called when one is.
  """

  def __init__(self, shards, eos, begin):
    self._shards, self._eos, self._begin, self._alive = shards, eos, begin, None
    self._closed = False

  def __call__(self, number, place):
    """Returns window `number`; its place is known."""
    del place
    found = self._shards.opened(number, self._awaited)
    return found and (streams.Stream(found[0], 'train', self._eos), found[1])

  def close(self):
    """Ends the waiting for a shard."""
    self._closed = True

  def _awaited(self):
    if self._closed:
      raise Closed
    self._alive = self._alive or self._begin()
    self._alive()


class Streamed:
  """The same of a task's documents, tokenised in memory; the next window is made while one is in use."""

  def __init__(self, task, vocabulary, size, eos):
    self._task, self._vocabulary, self._size, self._eos = task, vocabulary, size, eos
    self._at, self._ahead, self._closed = None, None, False

  def __call__(self, number, place):
    """Returns window `number`, which begins at `place`."""
    del number
    if self._closed:
      raise Closed
    if self._ahead is None or tuple(place) != self._at:
      if self._ahead is not None:
        self._ahead.close()
      self._ahead = Ahead(self._windows(place))
    found = next(self._ahead, None)
    self._at = found and found[1]
    return found

  def close(self):
    """Stops reading; a thread that waits for a window gets Closed."""
    self._closed = True
    if self._ahead is not None:
      self._ahead.close()

  def _windows(self, place):
    for chunk in chunks.of(self._task, self._size, place):
      yield chunks.held(chunk.texts, self._vocabulary, self._eos)[0], chunk.ends


class Ahead:
  """An iterator of the same items, each of which is made in a thread while the one before it is in use."""

  def __init__(self, items):
    self._items, self._made = items, queue.Queue()
    self._wanted, self._closed = threading.Semaphore(1), False
    threading.Thread(target=self._make, daemon=True).start()

  def __iter__(self):
    return self

  def __next__(self):
    item, error = self._made.get()
    self._wanted.release()
    if error is not None:
      self._made.put((None, error))      # for whoever asks again
      raise error
    return item

  def close(self):
    """Ends the thread, after the item that is being made; whoever waits for an item gets Closed."""
    self._closed = True
    self._wanted.release()
    self._made.put((None, Closed()))

  def _make(self):
    while True:
      self._wanted.acquire()
      if self._closed:
        return
      try:
        self._made.put((next(self._items), None))
      except Exception as error:         # StopIteration too; raised where the item is asked for
        self._made.put((None, error))
        return


class Feed:
  """The rows of training, by their global number: `feed(n)` gives (rows, row, n), as `batches.Batches` asks.

  A mark [first, epoch, window, place] says that row `first` is the first of that window. A mark is all that
  is needed to go on from there.

  Args:
    windows: (number, place) -> (stream, place behind it), or None behind the last window.
    rows_of: stream -> its rows, see data/batches.py.
    seed: (epoch, window) -> int, of the order of the rows; None = they stay in order.
  """

  def __init__(self, windows, rows_of, seed=None):
    self._windows, self._rows_of, self._seed = windows, rows_of, seed
    self._marks = [(0, 0, 0, corpora.START)]
    self._open = None                    # of the mark whose window is open: (mark, rows, order, mark behind)

  def __call__(self, n):
    at = self._open if self._open and self._open[0][0] <= n else self._opened(self.mark(n))
    while n >= at[3][0]:
      at = self._opened(at[3])
    mark, rows, order, _ = at
    row = n - mark[0]
    return rows, row if order is None else order[row], n

  def mark(self, n):
    """Returns the mark of the last known window that does not begin behind row `n`."""
    return max(mark for mark in self._marks if mark[0] <= n)

  def go(self, mark):
    """Learns a mark, of an earlier run over the same corpus."""
    first, epoch, window, place = mark
    self._marks.append((first, epoch, window, tuple(place)))

  def close(self):
    """Stops reading."""
    self._windows.close()

  def _opened(self, mark):
    if self._open and self._open[0] == mark:
      return self._open
    self._open = None                    # its memory is free while the next is made
    first, epoch, window, place = mark
    with progress.patience(f'waiting for part {window} of the corpus'):
      found = self._windows(window, place)
    if found is None and window == 0:
      raise errors.UserError('data.cache: the corpus has no document for training')
    if found is None:                    # the epoch has ended
      mark = self._known((first, epoch + 1, 0, corpora.START))
      return self._opened(mark)
    stream, ends = found
    rows = self._rows_of(stream)
    order = None if self._seed is None else (
        grain.MapDataset.range(len(rows)).shuffle(seed=self._seed(epoch, window)))
    behind = self._known((first + len(rows), epoch, window + 1, ends))
    self._open = mark, rows, order, behind
    return self._open

  def _known(self, mark):
    if mark not in self._marks:
      self._marks.append(mark)
    return mark
