"""One split of a cache as a single sequence of tokens, read by position, and how it is cut up."""

import functools

from array_record.python import array_record_module
import numpy as np

from stmoe import errors
from stmoe import files
from stmoe.data.text import cache as caches

KEPT = 1 << 14  # pieces held in memory, 128 MB of two-byte ids


class Reader:
  """The records, bytes, of an array_record file; an unreadable record is errors.Damaged."""

  def __init__(self, path):
    self._path = path
    self._file = self._try(lambda: array_record_module.ArrayRecordReader(str(path)))

  def __len__(self):
    return self._file.num_records()

  def __getitem__(self, at):
    return self._try(lambda: self._file.read([at])[0])

  def _try(self, work):
    try:
      return work()
    except files.BROKEN as error:
      raise errors.Damaged(self._path, files.reason(error)) from error


class Stream:
  """The documents of a split, one after the other, each followed by its EOS if `eos`.

  `document_ends` are the positions after each document; the last of them is the length.
  """

  def __init__(self, cache, split, eos=True):
    index = np.load(cache.path / f'{split}.index.npy').astype(np.int64)  # [pieces, (tokens, ends a document)]
    self._ends = np.cumsum(index[:, 0] - (0 if eos else index[:, 1]))
    self._starts = np.concatenate([[0], self._ends[:-1]])
    self._reader = Reader(cache.path / f'{split}.array_record')
    self._dtype = caches.token_type(cache.vocabulary)
    self._piece = functools.lru_cache(KEPT)(self._read_piece)
    self.document_ends = self._ends[index[:, 1] == 1]

  def __len__(self):
    return int(self._ends[-1])

  def read(self, start, stop):
    """Returns the ids [stop - start] at positions start .. stop - 1, at least one of them."""
    first = int(np.searchsorted(self._ends, start, 'right'))
    last = int(np.searchsorted(self._ends, stop, 'left'))
    parts = []
    for piece in range(first, last + 1):
      at = self._starts[piece]
      parts.append(self._piece(piece)[max(start - at, 0):min(stop, self._ends[piece]) - at])
    return parts[0] if len(parts) == 1 else np.concatenate(parts)

  def _read_piece(self, piece):
    return np.frombuffer(self._reader[piece], self._dtype)


class Held:
  """Documents in memory, i[tokens] with their EOS, as a Stream."""

  def __init__(self, documents, eos=True):
    parts = [ids if eos else ids[:-1] for ids in documents]
    self.document_ends = np.cumsum([len(ids) for ids in parts], dtype=np.int64)
    self._ids = np.concatenate(parts)

  def __len__(self):
    return len(self._ids)

  def read(self, start, stop):
    """Returns the ids [stop - start] at positions start .. stop - 1."""
    return self._ids[start:stop]


def pairs(stream):
  """Returns i64[n,2] starts and ends of pairs of consecutive documents, and i64[n,2] tokens of the two."""
  ends = stream.document_ends
  starts = np.concatenate([[0], ends[:-1]])
  return np.stack([starts[::2], ends[1::2]], axis=1), (ends - starts).reshape(-1, 2)


def segments(stream, length, join):
  """Returns i64[n,2]: starts and ends of consecutive segments of at most `length` that cover the stream.

  With `join` the stream is cut every `length` tokens, across documents, as T5 does (arXiv:1910.10683;
  its reference pipeline concatenates before it splits). Otherwise every document is cut by itself.
  """
  if join:
    starts = np.arange(0, len(stream), length)
    return np.stack([starts, np.minimum(starts + length, len(stream))], axis=1)
  ends = stream.document_ends
  begins = np.concatenate([[0], ends[:-1]])
  counts = -(-(ends - begins) // length)
  number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # within its document
  starts = np.repeat(begins, counts) + number * length
  return np.stack([starts, np.minimum(starts + length, np.repeat(ends, counts))], axis=1)
