"""The cache of a corpus in shards: each a chunk of it, a sealed folder (store.py) that is whole or not there.

`<task>-shards-<key>-v<format>/` holds `000000`, `000001`, ..., the tokens of the chunks (chunks.py) in order,
as a cache has them, and `validation`. When all are there, facts.json seals the folder with their number.
Shards may be made in any order, by several processes, and again after a kill: what is there stays.
"""

import contextlib
import dataclasses
import hashlib
import pathlib
import time
import typing

from stmoe import errors
from stmoe.data import store
from stmoe.data.large import chunks
from stmoe.data.large import corpora
from stmoe.data.text import cache as caches

VERSION = 'shards 1'                     # of how a corpus is cut
WAIT = 0.2                               # seconds between two looks for a shard


def key(task, vocabulary, size):
  """Returns what identifies the windows of `size` bytes of a task, in shards or streamed."""
  return caches.digest(caches.CONTENT, VERSION, task.name, task.fingerprint, vocabulary.digest, size)


@dataclasses.dataclass(frozen=True)
class Shards:
  """The folder `path` of the shards of `task` under `vocabulary`, each of `size` bytes of text.

  task may be None where all is there.
  """
  path: pathlib.Path
  vocabulary: typing.Any
  key: str
  task: typing.Any = None
  size: int = 0

  def facts(self):
    """Returns the facts of the whole folder, or None if shards are still missing."""
    return store.check(self.path) if (self.path / store.SEAL).is_file() else None

  def validation(self):
    """Returns the Cache of the split validation, made if need be."""
    def fill(folder):
      documents = caches.encoded(self._read(folder).documents('validation'), self.vocabulary)
      sizes = caches.write_texts(folder, 'validation', documents, self.vocabulary)
      return dict(key=self.key, splits=dict(validation=held_some(sizes)))
    path = self.path / 'validation'
    try:
      return caches.Cache(path, self.vocabulary, store.kept(path, fill))
    except errors.UserError:             # before anything is written: nothing is left
      with contextlib.suppress(OSError):
        self.path.rmdir()
      raise

  def has(self, number):
    """Returns whether shard `number` is there, by its seal; what it holds is checked when it is opened."""
    try:
      return bool(self._facts(number))
    except errors.Damaged:
      return False

  def ends(self, number):
    """Returns the place behind shard `number`; that of -1 is the start."""
    return tuple(self._facts(number)['ends']) if number >= 0 else corpora.START

  def write(self, number, chunk=None):
    """Writes shard `number` if it is not there, whole; without `chunk` its documents are read again."""
    def fill(folder):
      found = chunk or next(chunks.of(self._read(folder), self.size, self.ends(number - 1)))
      documents = caches.encoded(found.texts, self.vocabulary)
      sizes = caches.write_texts(folder, 'train', documents, self.vocabulary)
      return dict(key=self.key, ends=list(found.ends), splits=dict(train=sizes))
    return store.kept(self._folder(number), fill)

  def opened(self, number, alive=lambda: None):
    """Returns (Cache, place behind it) of shard `number`, awaited if need be; None behind the last one.

    alive: called while the shard is awaited; raises where nobody makes it.
    """
    while not self.has(number):
      facts = self.facts()
      if facts and number >= facts['shards']:
        return None
      if facts:
        self.write(number)
      else:
        alive()
        time.sleep(WAIT)
    facts = self.write(number)           # checks it, and makes it again if it is damaged
    return caches.Cache(self._folder(number), self.vocabulary, facts), tuple(facts['ends'])

  def seal(self, count):
    """Writes that there are `count` shards, and returns the facts of all."""
    if not count:
      raise errors.UserError(f'task {self.task.name}: the split \'train\' holds no documents')
    parts = [self._facts(number)['splits']['train'] for number in range(count)]
    train = {name: sum(part[name] for part in parts) for name in parts[0] if name != 'sha256'}
    train['sha256'] = hashlib.sha256(''.join(part['sha256'] for part in parts).encode()).hexdigest()
    facts = dict(task=self.task.name, key=self.key, **self.task.facts, vocabulary=self.vocabulary.digest,
                 shards=count, splits=dict(train=train) | self.validation().facts['splits'])
    store.write(self.path / store.SEAL, dict(facts=facts, files={}))
    return facts

  def _read(self, folder):
    """The task, whose documents are needed again."""
    if self.task is None:
      raise errors.Damaged(folder.parent / folder.name.partition('.')[0], 'is damaged or gone, and the files '
                           'it was made of are, too')
    return self.task

  def _folder(self, number):
    return self.path / f'{number:06}'

  def _facts(self, number):
    return store.verified(self._folder(number) / store.SEAL)['facts']


def of(task, vocabulary, size, cache_dir=None):
  """Returns the Shards of `task` under `vocabulary`; nothing is made."""
  found = key(task, vocabulary, size)
  path = store.named(caches.folder(cache_dir), f'{task.name}-shards', found)
  return Shards(path, vocabulary, found, task, size)


def held_some(sizes):
  """Returns `sizes`, of the split validation; UserError where it holds no documents."""
  if not sizes['documents']:
    raise corpora.Unfit('no document could be held out for validation, the corpus has too few')
  return sizes
