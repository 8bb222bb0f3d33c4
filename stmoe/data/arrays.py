"""Sources of data that are arrays: read from files once, divided into splits, kept as they were read."""

import hashlib
import json
import os
import typing
from typing import Callable, NamedTuple

import numpy as np

from stmoe import errors
from stmoe import files
from stmoe.data import given
from stmoe.data import record as records
from stmoe.data import store
from stmoe.data.text import cache as caches
from stmoe.data.text import tasks

HELD_OUT = 10                            # every tenth row is held out where the data name no split


class Labels(NamedTuple):
  """What data without a vocabulary have instead: the number of classes, and what identifies the data."""
  vocab_size: int
  digest: str


class Rows(NamedTuple):
  """The rows of a split: arrays [N,...] by the names of the entries of a batch."""
  arrays: dict

  def __len__(self):
    return len(next(iter(self.arrays.values())))

  def fill(self, batch, at, row, number):
    """Writes row `row` into row `at` of `batch`; nothing in it is random."""
    del number
    for name, array in self.arrays.items():
      batch[name][at] = array[row]


class Opened:
  """The opened data of such a source; what is needed of opened data is said in data/batches.py."""

  vocabulary: typing.Any = None
  weights = [1.0]
  metrics: dict = {}

  def __init__(self, source, found: records.Record, read: Callable, rows: Callable = Rows):
    """
    Args:
      source: has files, cache_dir and kind, and may have `answers`, the names of the columns of `values`.
      read: () -> (dict split -> dict name -> array, facts for data.json). Facts that end as `num_classes`
        are the classes of labels.
      rows: of the arrays of a split.
    """
    name, recorded_caches = source.kind, found.known(source)
    self._labels = getattr(source, 'answers', ())
    make = lambda: keep(name, source.cache_dir, *read())
    self.recorded, self._rows = bool(recorded_caches), rows
    self.files = found.values['files'] if recorded_caches else records.seen(source.files)
    cache = found.kept(source, name, make) if recorded_caches else make()
    self.facts = {field: value for field, value in cache.facts.items() if field != 'key'}
    self._splits = load(cache.path)
    self.keys, self.caches = {name: cache.key}, {name: cache.path}

  def rows(self, name: str, split: str, seed: int, train: bool):
    """Returns the rows of a split."""
    del name, seed, train
    return self._rows(self._splits[split])

  def info(self) -> dict:
    """Returns the facts of the data; see `info` of data/batches.py."""
    labels = Labels(self.facts.get('num_classes', 0), caches.digest(self.facts))
    sizes = {split: len(self._rows(arrays)) for split, arrays in self._splits.items()}
    answers = answered(self._labels, self._splits['train']) if self._labels else {}
    return dict(vocab=labels, vocab_size=labels.vocab_size, num_rows=sizes, answers=answers,
                sources=[dict(task=name, key=key) for name, key in self.keys.items()])


def answered(names, arrays: dict) -> dict:
  """Returns dict name -> (least, most) of the columns f32[N,n] of `values` that have a weight in any row."""
  found = {}
  for name, column, weight in zip(names, arrays['values'].T, arrays['weights'].T):
    if weight.any():
      found[name] = float(column[weight > 0].min()), float(column[weight > 0].max())
  return found


def keep(name: str, cache_dir: str, splits: dict, facts: dict) -> store.Kept:
  """Returns the `store.Kept` of dict split -> dict name -> array; makes the folder if there is none."""
  digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
  for split, arrays in splits.items():
    for entry, array in arrays.items():
      digest.update(repr((split, entry, array.shape, array.dtype.str)).encode())
      digest.update(np.ascontiguousarray(array).tobytes())
  key = digest.hexdigest()[:16]
  path = store.named(caches.folder(cache_dir), name, key)

  def write(folder):
    for split, arrays in splits.items():
      np.savez(folder / f'{split}.npz', **arrays)
    return facts | dict(key=key)
  return store.Kept(path, store.kept(path, write))


def load(path) -> dict:
  """Returns dict split -> dict name -> array of a folder that `keep` made."""
  return {split: files.read_arrays(path / f'{split}.npz', store.WHOLE) for split in tasks.SPLITS}


def read(path) -> dict:
  """Returns dict name -> array of the user's file `path`, an .npz."""
  try:
    return files.read_arrays(path, max(files.LARGEST, given.RATIO * os.path.getsize(path)))
  except (OSError, errors.Damaged) as error:
    raise errors.UserError(f'data.files: {path} is not readable as .npz: '
                           f'{getattr(error, "reason", error)}') from error


def named(path, names, *wanted: str) -> str:
  """Returns which of the names `wanted` is among the `names` of file `path`."""
  for name in wanted:
    if name in names:
      return name
  raise errors.UserError(f'{path} has no array {" or ".join(map(repr, wanted))}'
                         f'{errors.nearest(wanted[0], names)} (it has: {", ".join(names)})')


def paths(source) -> tuple:
  """Returns data.files of a source: one path for both splits, or two."""
  if len(source.files) not in (1, 2):
    raise errors.UserError(f'data.files: {source.kind} are read from one file, or one for each split; it got '
                           f'{len(source.files)}')
  return tuple(map(str, source.files))


def held_out(path, split, num: int) -> np.ndarray:
  """Returns bool[num], which rows of a file are held out: where `split` says validation, or every tenth.

  Args:
    split: 'train' or 'validation' for each, or None.
  """
  if split is None:
    return np.arange(num) % HELD_OUT == HELD_OUT - 1
  split = np.asarray(split)
  if split.shape != (num,):
    raise errors.UserError(f'{path}: split has the shape {list(split.shape)}; it must be [{num}]')
  unknown = sorted(set(map(str, split.tolist())) - set(tasks.SPLITS))
  if unknown:
    raise errors.UserError(f'{path}: split has {unknown[0]!r}{errors.nearest(unknown[0], tasks.SPLITS)} '
                           f'(there are: {", ".join(tasks.SPLITS)})')
  return split == 'validation'


def divided(path, arrays: dict, held: np.ndarray) -> dict:
  """Returns dict split -> dict name -> array of arrays [N,...]; `held` bool[N] says what is held out."""
  chosen = {'train': ~held, 'validation': held}
  for split, rows in chosen.items():
    if not rows.any():
      raise errors.UserError(f'{path}: the split {split!r} holds no rows')
  return {split: {name: array[rows] for name, array in arrays.items()} for split, rows in chosen.items()}


def numbers(path, name: str, array, ndims: tuple) -> np.ndarray:
  """Returns f32 of an array of finite numbers with one of `ndims` axes; UserError naming file and array."""
  array = np.asarray(array)
  if array.dtype.kind not in 'fiub' or array.ndim not in ndims:
    raise errors.UserError(f'{path}: {name} is {array.dtype}{list(array.shape)}; it must hold numbers and '
                           f'have {" or ".join(map(str, ndims))} axes')
  with np.errstate(over='ignore'):
    array = array.astype(np.float32)
  if not np.isfinite(array).all():
    at = [int(i) for i in np.argwhere(~np.isfinite(array))[0]]
    raise errors.UserError(f'{path}: {name}{at} is no finite number')
  return array


def whole(path, name: str, array) -> np.ndarray:
  """Returns i32 of an array of whole numbers of at least 0; UserError naming file and array."""
  array = np.asarray(array)
  if array.dtype.kind not in 'iub' or array.size and not 0 <= array.min() <= array.max() < 2 ** 31:
    raise errors.UserError(f'{path}: {name} is {array.dtype}{list(array.shape)}; it must hold whole numbers '
                           'of at least 0')
  return array.astype(np.int32)
