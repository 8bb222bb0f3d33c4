"""Corpora that are never held whole: tasks whose training documents are read in order, from any place on.

A place is [n, m]: m documents of file n, and all files before it, are behind it. Of files that `datasets`
did not save with a split validation, documents of the first HELD_FROM bytes of text are held out, one in
corpus.HELD_OUT, by their sha256. All other documents are for training.
"""

import dataclasses
import functools
import hashlib
import itertools
import os

from stmoe import errors
from stmoe.data import given
from stmoe.data import store
from stmoe.data.text import corpus
from stmoe.data.text import documents as reading
from stmoe.data.text import tasks

START = (0, 0)
HELD_FROM = 64 << 20
BELOW = (1 << 64) // corpus.HELD_OUT     # the first eight bytes of the sha256 of a document that is held out


class Unfit(errors.UserError):
  """A corpus that has to be held whole, for `reason`; the line names the field that says how it is held."""

  def __init__(self, reason):
    super().__init__(f'data.cache: {reason}; nearest: --config.data.cache=whole')
    self.reason = reason


def of(name, files=(), **how):
  """Returns the Task `name`, read in order: its `since` is set. UserError for a task of pairs.

  Args:
    files: of task text: files, folders and patterns. They are identified by size and `store.sample`.
    how:   `field` and `documents`, see sources/texts.py.
  """
  if name != 'text':
    task = tasks.get(name, files, **how)
    if task.paired:
      raise Unfit(f'task {name} is one of pairs, which are cached whole')
    return dataclasses.replace(task, since=functools.partial(_counted, task))
  return Files(*reading.divided(files), how.get('field', ''), how.get('documents', '')).task()


def _counted(task, place=START, count=lambda read: None):
  """Gives (text, place behind it) of the training documents of a task that is read from its start."""
  skip = place[1]
  for number, text in enumerate(itertools.islice(task.documents('train'), skip, None), skip + 1):
    count(len(text.encode()))
    yield text, (0, number)


@dataclasses.dataclass(frozen=True)
class Files:
  """A corpus in `files`, with those `held` out as they were saved; `field`, `apart` as of documents.each."""
  files: list
  held: list
  field: str
  apart: str

  def task(self):
    """Returns the Task text of these files."""
    total = sum(self._sizes)             # first: a file that is not there is said so
    samples = [store.sample(file) for file in self.files + self.held]
    key = hashlib.sha256(repr((samples, len(self.held), self.field, self.apart)).encode()).hexdigest()
    documents = lambda split: self._held_out() if split == 'validation' else (t for t, _ in self.since())
    return tasks.Task('text', key, dict(files=self.files + self.held), documents,
                      lambda split: total if split == 'train' else None, since=self.since)

  def since(self, place=START, count=lambda read: None):
    """Gives (text, place behind it) of the training documents from `place` on.

    Args:
      count: called with numbers of bytes of the files that were read, or passed over.
    """
    before = sum(self._sizes[:place[0]])
    count(before)
    for number in range(place[0], len(self.files)):
      for at, text, held in self._documents(number, before, count):
        if not held and (number, at) > tuple(place):
          yield text.decode(), (number, at)
      before += self._sizes[number]

  def _held_out(self):
    """Gives the texts that are held out."""
    if self.held:
      for file in self.held:
        yield from (text.decode() for text in reading.each(file, self.field, self.apart))
      return
    before = 0
    for number, size in enumerate(self._sizes):
      for _, text, held in self._documents(number, before, until=HELD_FROM):
        if held:
          yield text.decode()
      before += size
      if before >= HELD_FROM:
        return

  def _documents(self, number, before, count=lambda read: None, until=None):
    """Gives (documents so far, bytes, whether held out) of file `number`, that has `before` bytes before it.

    until: ends where so many bytes of text were read.
    """
    at = before
    for place, text in enumerate(reading.each(self.files[number], self.field, self.apart, count), 1):
      held = not self.held and at < HELD_FROM and _drawn(text)
      yield place, text, held
      at += len(text)
      if until and at >= until:
        return

  @functools.cached_property
  def _sizes(self):
    """Bytes of each of `files`."""
    try:
      return [os.stat(file).st_size for file in self.files]
    except OSError as error:
      raise given.absent(error.filename, 'data.files') from error


def _drawn(text):
  return int.from_bytes(hashlib.sha256(text).digest()[:8], 'little') < BELOW
