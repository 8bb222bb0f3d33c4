"""The cache: the tokens of every document of a task, written once, read by position.

A cache is a folder `<task>-<vocabulary>-<key>` with, for each split, `<split>.array_record` (the
documents in order, each cut into pieces of at most PIECE tokens, its EOS at the end of its last
piece), `<split>.index.npy` and `facts.json`; of a task that is judged by metrics also
`validation.records.jsonl`, the examples as they were before tokenisation. `key` hashes the task's
fingerprint and the vocabulary, so a changed file or vocabulary makes another cache. A cache appears under
its name complete or not at all.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import shutil
import socket
import time

from array_record.python import array_record_module
import numpy as np

from stmoe import errors
from stmoe.data import progress
from stmoe.data import tasks
from stmoe.data import vocab

FORMAT = 1
PIECE = 4096
RECORDS = 'records 1'                    # the format of what lies beside the tokens
BATCH_BYTES = 1 << 20  # documents are tokenised together until they have this many bytes
OPTIONS = 'group_size:1,zstd:1'
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclasses.dataclass(frozen=True)
class Cache:
  """A finished cache: its folder, its vocabulary, and `facts` (sizes and digests, see `_write`)."""
  path: pathlib.Path
  vocabulary: object
  facts: dict

  @property
  def key(self):
    """Returns what identifies the tokens in it."""
    return self.facts['key']


def folder(cache_dir=None):
  """Returns the folder that holds all caches: the given one, $STMOE_CACHE_DIR or ~/.cache/stmoe."""
  return pathlib.Path(cache_dir or os.environ.get('STMOE_CACHE_DIR') or '~/.cache/stmoe').expanduser()


def of(task, vocabulary, cache_dir=None):
  """Returns the Cache of `task` under `vocabulary`, making it if it is not there."""
  key = digest(FORMAT, task.name, task.fingerprint, vocabulary.digest, *[RECORDS] * bool(task.examples))
  path = folder(cache_dir) / f'{task.name}-{key}'
  if not path.is_dir():
    with new(path) as unfinished:
      _write(unfinished, task, vocabulary, key)
  return Cache(path, vocabulary, json.loads((path / 'facts.json').read_text()))


def vocabulary_of(spec, among, extra_ids=0, cache_dir=None):
  """Returns the vocabulary `spec`: 'bytes', 'train:N' or the path of a SentencePiece model.

  'train:N' is trained once on the train splits of the tasks `among`, and kept beside the caches.
  """
  if not spec:
    raise errors.UserError('data.vocab is empty: the model was imported without a SentencePiece model, and '
                           'other tokenizers are not read; give its own to this command or to stmoe convert: '
                           '--config.data.vocab=FILE')
  if spec == 'bytes':
    return vocab.Bytes(extra_ids)
  if not spec.startswith('train:'):
    return vocab.Pieces(spec, extra_ids)
  num_pieces = spec.removeprefix('train:')
  if not num_pieces.isdigit():
    raise errors.UserError(f'data.vocab={spec!r}: not a number of pieces; write train:4096')
  key = digest(FORMAT, num_pieces, vocab.RECIPE, *(part for t in among for part in (t.name, t.fingerprint)))
  path = folder(cache_dir) / f'vocab-{"+".join(t.name for t in among)}-{num_pieces}-{key}'
  if not path.is_dir():
    with new(path) as unfinished, progress.task(f'training a vocabulary of {num_pieces} pieces', None):
      texts = (text for task in among for text in task.documents('train'))
      (unfinished / 'pieces.model').write_bytes(vocab.train(texts, int(num_pieces)))
  return vocab.Pieces(path / 'pieces.model', extra_ids)


def digest(*parts):
  """Returns 16 hex digits that stand for `parts`, values for JSON."""
  return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@contextlib.contextmanager
def new(path):
  """Gives a folder to fill, which becomes `path` if the body ends well and vanishes if it does not."""
  host = socket.gethostname()
  unfinished = path.with_name(f'{path.name}.unfinished.{host}.{os.getpid()}')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path, host)
    unfinished.mkdir()
    yield unfinished
    os.rename(unfinished, path)
  except (OSError, RuntimeError, ValueError) as e:
    if path.is_dir():  # another process was faster
      return
    if getattr(e, 'errno', None) in FULL or any(os.strerror(code) in str(e) for code in FULL):
      raise errors.UserError(f'no space left on device for the cache {path}; free some, or set '
                             '--config.data.cache_dir=DIR') from e
    if isinstance(e, OSError):
      raise errors.UserError(f'cannot write the cache {path}: {e.strerror}; set '
                             '--config.data.cache_dir=DIR') from e
    raise
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)


def _sweep(path, host):
  """Removes what processes of this machine that are gone left unfinished."""
  for left in path.parent.glob(f'{path.name}.unfinished.{host}.*'):
    pid = int(left.name.rpartition('.')[2])
    try:
      os.kill(pid, 0)
    except ProcessLookupError:
      shutil.rmtree(left, ignore_errors=True)
    except PermissionError:
      pass


def records(found):
  """Returns the list of the examples of a cache's validation split (see examples.py); [] of plain text."""
  path = found.path / 'validation.records.jsonl'
  if not path.exists():
    return []
  with open(path, encoding='utf-8') as f:
    return [json.loads(line) for line in f]


def _write(path, task, vocabulary, key):
  start = time.time()
  if task.examples:
    with open(path / 'validation.records.jsonl', 'w', encoding='utf-8') as f:
      f.writelines(json.dumps(example) + '\n' for example in task.examples('validation'))
  splits = {split: _write_split(path, task, split, vocabulary) for split in tasks.SPLITS}
  facts = dict(task=task.name, key=key, **task.facts, vocabulary=vocabulary.digest, splits=splits,
               seconds=round(time.time() - start, 2))
  with open(path / 'facts.json', 'w') as f:
    json.dump(facts, f, indent=1)


def _write_split(path, task, split, vocabulary):
  """Writes the tokens of one split; returns its sizes and the sha256 of its joined text."""
  digest = hashlib.sha256()
  documents = num_bytes = num_tokens = 0
  index = []
  dtype = token_type(vocabulary)
  writer = array_record_module.ArrayRecordWriter(str(path / f'{split}.array_record'), OPTIONS)
  with progress.task(f'caching {task.name} {split}', task.size(split), 'bytes') as advance:
    for texts in _batches(task.documents(split)):
      for text, ids in zip(texts, vocabulary.encode(texts), strict=True):
        text = text.encode()
        digest.update(text)
        documents, num_bytes, num_tokens = documents + 1, num_bytes + len(text), num_tokens + len(ids) + 1
        ids = np.append(ids, vocabulary.eos_id).astype(dtype)
        for at in range(0, len(ids), PIECE):
          piece = ids[at:at + PIECE]
          writer.write(piece.tobytes())
          index.append((len(piece), at + PIECE >= len(ids)))
        advance(len(text))
  writer.close()
  np.save(path / f'{split}.index.npy', np.asarray(index, np.int32).reshape(-1, 2))
  if not documents:
    raise errors.UserError(f'task {task.name}: the split {split!r} holds no documents')
  return dict(documents=documents, bytes=num_bytes, tokens=num_tokens, sha256=digest.hexdigest())


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
