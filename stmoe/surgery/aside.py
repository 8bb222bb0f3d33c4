"""Arrays that are read where they are looked at, so that a surgery never holds more than a layer of a model.

`Deferred` stands for an array of a checkpoint. `Made` collects what a surgery makes, and puts large arrays
into files while a `folder` is there for them.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import contextvars
import itertools
import math
import pathlib
import tempfile
import typing

import jax
import jax.numpy as jnp
import numpy as np

LARGE = 1 << 20                          # bytes of an array that goes into a file
_place: contextvars.ContextVar[typing.Any] = contextvars.ContextVar('place', default=None)


class Deferred:
  """An array [...] that is read when it is `fetched`; [i] is its part i along the first axis, as deferred.

  read: function (index: a tuple of ints along the first axes, and maybe a slice of the next) -> numpy array.
  """

  def __init__(self, shape: tuple, dtype: typing.Any, read: Callable[[tuple], np.ndarray],
               index: tuple = ()):
    self.shape, self.dtype, self._read, self._index = tuple(shape), np.dtype(dtype), read, index

  ndim = property(lambda self: len(self.shape))
  size = property(lambda self: int(np.prod(self.shape, dtype=np.int64)))

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, i: int) -> 'Deferred':
    if not isinstance(i, int) or not 0 <= i < self.shape[0]:
      raise IndexError(i)
    return Deferred(self.shape[1:], self.dtype, self._read, (*self._index, i))

  def of(self, dtype: typing.Any) -> 'Deferred':
    """Returns the same array in another dtype."""
    return Deferred(self.shape, dtype, self._read, self._index)

  def part(self, index: tuple) -> np.ndarray:
    """Returns the numpy array at `index`: ints along the first axes, and maybe a slice of the next."""
    return self._read((*self._index, *index))

  def rows(self, first: int, last: int, dtype: typing.Any) -> np.ndarray:
    """Returns entries `first` to `last` along the first axis, in `dtype`."""
    return np.asarray(self.part((slice(first, last),)), dtype)

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    return np.asarray(self._read(self._index), dtype or self.dtype)


def fetched(value: typing.Any) -> typing.Any:
  """Returns a Deferred as a jax array [...], and any other value as it is."""
  return jnp.asarray(np.asarray(value)) if isinstance(value, Deferred) else value


def part(value: typing.Any, index: tuple) -> np.ndarray:
  """Returns the numpy array at `index` of an array or Deferred: ints along the first axes, maybe a slice."""
  return value.part(index) if isinstance(value, Deferred) else np.asarray(value)[index]


class Fetched(Mapping):
  """A dict path -> array [...] that fetches each array when that is asked for.

  beside: dict path -> what is given together with the array, (array, beside[path]); None = nothing is.
  """

  def __init__(self, arrays: dict, beside: dict | None = None):
    self._arrays, self._beside = arrays, beside

  def __getitem__(self, path):
    array = fetched(self._arrays[path])
    return array if self._beside is None else (array, self._beside[path])

  def __iter__(self) -> Iterator:
    return iter(self._arrays)

  def __len__(self) -> int:
    return len(self._arrays)

  def __or__(self, other: Mapping) -> dict:
    return dict(self) | dict(other)

  def deferred(self) -> dict:
    """Returns the dict path -> array or Deferred: shapes and dtypes, of which nothing is fetched."""
    return dict(self._arrays)

  def beside(self, values: dict) -> 'Fetched':
    """Returns the dict path -> (array, values[path]) of the paths in `values`."""
    return Fetched({path: self._arrays[path] for path in values}, values)


class Made(dict):
  """A dict path -> array or nested dict of what a surgery makes; large arrays are in files, see `folder`."""

  def __setitem__(self, path, value):
    super().__setitem__(path, jax.tree.map(put, value))

  def __ior__(self, other):  # type: ignore[misc]                     # a dict's own passes __setitem__ by
    for path, value in other.items():
      self[path] = value
    return self


@contextlib.contextmanager
def folder(parent: pathlib.Path) -> Iterator[None]:
  """Context in which large arrays go into files of a new folder in `parent`, which goes at its end."""
  with tempfile.TemporaryDirectory(prefix='.made-', dir=parent) as path:
    token = _place.set((pathlib.Path(path), itertools.count()))
    try:
      yield
    finally:
      _place.reset(token)


def put(value: typing.Any) -> typing.Any:
  """Returns an array or Deferred, or the Deferred of the file that a large array went into."""
  if _place.get() is None or isinstance(value, Deferred) or value.size * value.dtype.itemsize < LARGE:
    return value
  array, file = np.asarray(value), _new()
  array.tofile(file)
  return _of(file, array.shape, array.dtype)


def put_parts(shape: tuple, dtype: np.dtype, parts: Iterable[tuple]) -> typing.Any:
  """Returns what `put` returns of an array [...] whose `parts` come one by one, as (slices, numpy array).

  Where the array goes into a file, no more than a part of it is in memory.
  """
  size = math.prod(shape) * dtype.itemsize
  if _place.get() is None or size < LARGE:
    whole = np.empty(shape, dtype)
    for where, numbers in parts:
      whole[where] = numbers
    return whole
  file = _new()
  with file.open('wb') as f:
    f.truncate(size)
  for where, numbers in parts:
    np.memmap(file, dtype, 'r+', shape=shape)[where] = numbers       # pages of a file that stays mapped count
  return _of(file, shape, dtype)


def _new():
  """The path of a new file in the folder."""
  path, numbers = _place.get()
  return path / f'{next(numbers)}.bin'


def _of(file, shape, dtype):
  """The Deferred of an array that a file holds."""
  return Deferred(shape, dtype, lambda index: np.array(np.memmap(file, dtype, 'r', shape=shape)[index]))
