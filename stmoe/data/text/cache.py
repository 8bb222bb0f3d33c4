"""The cache: the tokens of every document of a task, written once, read by position.

A cache is a sealed folder (store.py) `<task>-<key>-v<format>`. For each split, `<split>.array_record` holds
the documents in order. Each document is cut into pieces of at most PIECE tokens, with its EOS at the end of
its last piece. `<split>.index.npy` is the index of that file. A task that is judged by metrics also has
`validation.records.jsonl`, the examples as they were before tokenisation. `key` hashes the task's fingerprint
and the vocabulary, so a changed file or vocabulary makes another cache.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re

from array_record.python import array_record_module
import numpy as np

from stmoe import errors
from stmoe import files
from stmoe.data import bar as progress
from stmoe.data import store
from stmoe.data.text import tasks
from stmoe.data.text import tokenizer
from stmoe.data.text import vocab

CONTENT = 1                              # of what keys stand for; checkpoints hold keys
PIECE = 4096
RECORDS = 'records 1'                    # the format of what lies beside the tokens
BATCH_BYTES = 1 << 20  # documents are tokenised together until they have so many bytes
OPTIONS = 'group_size:1,zstd:1'
EXAMPLES = 'validation.records.jsonl'


@dataclasses.dataclass(frozen=True)
class Cache:
  """A finished cache: its folder, its vocabulary, and `facts` (sizes and digests, see `_write`)."""
  path: pathlib.Path
  vocabulary: object
  facts: dict

  @property
  def key(self):
    """Returns what identifies the tokens in the cache."""
    return self.facts['key']


def folder(cache_dir=None):
  """Returns the folder that holds all caches: `cache_dir`, $STMOE_CACHE_DIR or ~/.cache/stmoe."""
  return pathlib.Path(cache_dir or os.environ.get('STMOE_CACHE_DIR') or '~/.cache/stmoe').expanduser()


def of(task, vocabulary, cache_dir=None):
  """Returns the Cache of `task` under `vocabulary`; makes the cache if there is none."""
  key = digest(CONTENT, task.name, task.fingerprint, vocabulary.digest, *[RECORDS] * bool(task.examples))
  path = store.named(folder(cache_dir), task.name, key)
  facts = store.kept(path, lambda unfinished: _write(unfinished, task, vocabulary, key))
  return Cache(path, vocabulary, facts)


def exists(task, cache_dir=None):
  """Returns whether there is a cache of `task`, under whatever vocabulary."""
  return any(folder(cache_dir).glob(f'{task.name}-*'))


def vocabulary_of(spec, among, extra_ids=0, cache_dir=None):
  """Returns the vocabulary `spec`: 'bytes', 'train:N', or of a tokenizer.json or SentencePiece model.

  The last two are given as the path of the file, or of its folder. 'train:N' is trained once on the train
  splits of the tasks `among`, and kept beside the caches.
  """
  if not spec:
    raise errors.UserError("data.vocab='' names no vocabulary; nearest: data.vocab=bytes. A model that was "
                           'imported without a vocabulary (tokenizer.json or a SentencePiece model) gets its '
                           'own in this command or in stmoe convert: --config.data.vocab=FILE')
  if spec == 'bytes':
    return vocab.Bytes(extra_ids)
  if not spec.startswith('train:'):
    return tokenizer.opened(spec, extra_ids)
  num_pieces = spec.removeprefix('train:')
  if not re.fullmatch('[1-9][0-9]{0,8}', num_pieces):
    raise errors.UserError(f'data.vocab={spec!r}: not a number of pieces; write train:4096')
  key = digest(CONTENT, num_pieces, vocab.RECIPE, *(part for t in among for part in (t.name, t.fingerprint)))
  path = store.named(folder(cache_dir), f'vocab-{"+".join(t.name for t in among)}-{num_pieces}', key)

  def make(unfinished):
    with progress.task(f'training a vocabulary of {num_pieces} pieces', None):
      texts = (text for task in among for text in task.documents('train'))
      (unfinished / vocab.FILE).write_bytes(vocab.train(texts, int(num_pieces)))
    return dict(key=key)
  store.kept(path, make)
  return vocab.Pieces(path / vocab.FILE, extra_ids)


def digest(*parts):
  """Returns 16 hex digits that stand for `parts`, values for JSON."""
  return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def records(found):
  """Returns the list of the examples of a cache's validation split (see examples.py); [] of plain text."""
  return files.read_lines(found.path / EXAMPLES)


def _write(path, task, vocabulary, key):
  """Fills folder `path` with a cache; returns its facts: sizes, and the sha256 of the text of each split."""
  if task.examples:
    with open(path / EXAMPLES, 'w', encoding='utf-8') as f:
      f.writelines(json.dumps(example) + '\n' for example in task.examples('validation'))
  splits = {split: _write_split(path, task, split, vocabulary) for split in tasks.SPLITS}
  return dict(task=task.name, key=key, **task.facts, vocabulary=vocabulary.digest, splits=splits)


def _write_split(path, task, split, vocabulary):
  """Writes the tokens of one split; returns its sizes and the sha256 of its joined text."""
  with progress.task(f'caching {task.name} {split}', task.size(split), 'bytes') as advance:
    sizes = write_texts(path, split, _whole(task, split, vocabulary), vocabulary, advance)
  if not sizes['documents']:
    raise errors.UserError(f'task {task.name}: the split {split!r} holds no documents')
  return sizes


def _whole(task, split, vocabulary):
  """Gives (text, ids) of the documents of a split; UserError for a text of a pair that holds EOS."""
  for text, ids in encoded(task.documents(split), vocabulary):
    if task.paired and vocabulary.eos_id in ids:
      raise errors.UserError(f'task {task.name}: a text of split {split!r} holds the token that ends '
                             f'texts: {text[:60]!r}')
    yield text, ids


def encoded(texts, vocabulary):
  """Gives (text, ids i32[tokens]) of texts, which are tokenised BATCH_BYTES at a time."""
  for batch in _batches(texts):
    yield from zip(batch, vocabulary.encode(batch), strict=True)


def write_texts(path, split, documents, vocabulary, advance=lambda size: None):
  """Writes SPLIT.array_record and its index into folder `path`.

  Args:
    documents: iterator of (text, ids), see `encoded`.
    advance:   called with the bytes of each text.

  Returns:
    dict of documents, bytes, tokens, piece_bytes and the sha256 of the joined text.
  """
  sizes, index = Sizes(vocabulary), []
  writer = array_record_module.ArrayRecordWriter(str(path / f'{split}.array_record'), OPTIONS)
  for text, ids in documents:
    ids = sizes.add(text, ids)
    for at in range(0, len(ids), PIECE):
      piece = ids[at:at + PIECE]
      writer.write(piece.tobytes())
      index.append((len(piece), at + PIECE >= len(ids)))
    advance(len(text.encode()))
  writer.close()
  np.save(path / f'{split}.index.npy', np.asarray(index, np.int32).reshape(-1, 2))
  return sizes.facts()


class Sizes:
  """Counts documents that are added: their bytes, tokens and the bytes of their pieces."""

  def __init__(self, vocabulary):
    self._vocabulary, self._dtype = vocabulary, token_type(vocabulary)
    self._digest = hashlib.sha256()
    self._counts = dict(documents=0, bytes=0, tokens=0, piece_bytes=0)

  def add(self, text, ids):
    """Counts a document; returns its `ids` with EOS, as they are stored."""
    text = text.encode()
    self._digest.update(text)
    more = 1, len(text), len(ids) + 1, int(self._vocabulary.num_bytes(ids).sum())
    for name, size in zip(self._counts, more):
      self._counts[name] += size
    return np.append(ids, self._vocabulary.eos_id).astype(self._dtype)

  def facts(self):
    """Returns dict of the counts, with the sha256 of the joined text."""
    return self._counts | dict(sha256=self._digest.hexdigest())


def token_type(vocabulary):
  """Returns the little-endian dtype in which ids of `vocabulary` are stored."""
  return np.dtype('<u2' if vocabulary.vocab_size <= 1 << 16 else '<i4')


def _batches(texts):
  batch, size = [], 0
  for text in texts:
    batch.append(text)
    size += len(text)
    if size >= BATCH_BYTES:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch
