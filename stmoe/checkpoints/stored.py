"""The arrays of a checkpoint as they lie on disk, opened one by one without reading them whole.

With `checkpoint` and `streamed` this is all that knows how orbax stores arrays. The trainer's checkpoints
keep all arrays in one database; streamed checkpoints have a folder of chunks (zarr) for each array.
"""

import collections
import itertools
import math
import pathlib

import numpy as np
import tensorstore as ts

from stmoe import errors
from stmoe import files
from stmoe.checkpoints import checksum
from stmoe.checkpoints import seal

ZARRAY = '.zarray'                       # the key under which an array's shape and chunks are


class Reader:
  """The arrays of a step, opened one by one; raises UserError for what cannot be read.

  meta: of the step; inventory: dict path -> [shape, checksum, ...], see `seal.read`.
  """

  def __init__(self, directory, step):
    folder = files.plain_path(directory) / str(step)
    self._state, self._where, self.step = folder / 'state', f'{step} of {directory}', step
    facts = files.read_json(self._state / '_METADATA')
    self._database = facts.get('use_ocdbt', True)
    self._driver = 'zarr3' if facts.get('use_zarr3') else 'zarr'
    try:
      self.meta, _ = seal.read(folder)
    except ValueError as error:
      raise errors.UserError(f'checkpoint {self._where} cannot be read: {error}') from error
    self.inventory = self.meta['arrays']
    self.digest = self.meta.get('digest') or str(self.inventory)     # format 1 has none

  def array(self, leaf):
    """Returns the store of array `leaf` (a tuple of keys)."""
    try:
      return self._open(leaf).result()
    except ValueError as error:
      raise errors.UserError(f'checkpoint {self._where} cannot be read ({files.reason(error)})') from None

  def _open(self, leaf):
    return ts.open(spec(self._state, leaf, self._database, self._driver), open=True, read=True)

  def part(self, leaf, index):
    """Returns the numpy array at `index` of array `leaf`: ints along the first axes, and maybe a slice."""
    return self._read(self.array(leaf), index or ...)

  def parts(self, leaf):
    """Yields (slices, numpy array) of every chunk of array `leaf`; a chunk is read when it is asked for."""
    store = self.array(leaf)
    sizes = zip(store.shape, store.chunk_layout.read_chunk.shape or ())
    along = [[slice(at, min(at + size, length)) for at in range(0, length, size)] for length, size in sizes]
    for where in itertools.product(*along):
      yield where, self._read(store, where or ...)

  def divided(self, leaf, index):
    """Returns whether the chunks of array `leaf` hold no more than the part at `index`, see `part`."""
    along = zip(index, self.array(leaf).chunk_layout.read_chunk.shape)
    return all(n <= (at.stop - at.start if isinstance(at, slice) else 1) for at, n in along)

  def piece(self, store, leaf, where):
    """Returns the numpy array at `where`, ints and slices, of the store of array `leaf`."""
    size = store.chunk_layout.read_chunk.shape
    file = chunk(leaf, store.shape, size, where) if self._unpacked(store) else None
    if file is None or not (self._state / file).is_file():           # of zeros alone there may be none
      return self._read(store, where)
    try:
      numbers = np.fromfile(self._state / file, np.uint8).view(store.dtype.numpy_dtype)
      return numbers.reshape([n for n, at in zip(size, where) if not isinstance(at, int)] + [
          *size[len(where):]])
    except (OSError, ValueError):
      return self._read(store, where)    # which says what is wrong

  def _unpacked(self, store):
    """Whether a chunk of a store is a file of its numbers."""
    return not self._database and self._driver == 'zarr' and store.codec.to_json().get('compressor') is None

  def _read(self, store, where):
    try:
      return read(store, where)
    except files.BROKEN as error:
      raise errors.UserError(f'checkpoint {self._where} cannot be read ({files.reason(error)})') from None

  def check(self, leaf):
    """Raises UserError unless array `leaf` is what was saved; reads some rows at a time."""
    store, total = self.array(leaf), 0
    rows = (*store.chunk_layout.read_chunk.shape, 1)[0]
    for first in range(0, store.shape[0], rows) if store.shape else [None]:
      where = ... if first is None else (slice(first, min(first + rows, store.shape[0])),)
      total += self.share(self._read(store, where), store.shape, where)
    name = '/'.join(map(str, leaf))
    if total % 2**32 != self.inventory[name][1]:
      raise errors.UserError(f'checkpoint {self._where}: {name} is not what was saved')

  def share(self, x, shape, where):
    """Returns the share of numpy `x`, at the slices `where` of an array of `shape`, in its checksum."""
    return checksum.part(x, shape, where) if 'format' in self.meta else checksum.plain_sum(x)

  def missing(self):
    """Returns the first path of the inventory whose array is not there with all its parts, or None."""
    store = ts.KvStore.open(_store(self._state, self._database)).result()
    keys = [key.decode().rpartition('/') for key in store.list().result()]
    parts = collections.Counter(name for name, _, key in keys if key != ZARRAY)
    facts = {name: store.read(f'{_name(name.split("/"))}/{ZARRAY}') for name in self.inventory}
    for name, (shape, _, dtype) in self.inventory.items():
      layout = files.parse_json((facts[name].result().value or b'{}').decode())
      sizes = zip(layout.get('shape', ()), layout.get('chunks', ()))
      chunks = math.prod(-(-n // chunk) for n, chunk in sizes)
      key = str(dtype).startswith('key')                             # is stored as its words
      whole = not self._database or parts[_name(name.split('/'))] == chunks  # zeros are written, too
      if not layout or not (key or layout['shape'] == shape) or not whole:
        return name
    return None


def _name(leaf):
  """How array `leaf` (keys) is called on disk."""
  return '.'.join(map(str, leaf))


def _store(state, database):
  """What tensorstore is told about all that is kept in folder `state` of a step."""
  file = dict(driver='file', path=f'{state}/')
  return dict(driver='ocdbt', base=file) if database else file


def spec(state, leaf, database, driver='zarr'):
  """Returns what tensorstore is told about array `leaf` (keys) in folder `state` of a step."""
  if database:
    return dict(driver=driver, kvstore=_store(state, database) | dict(path=f'{_name(leaf)}/'))
  return dict(driver=driver, kvstore=dict(driver='file', path=f'{state}/{_name(leaf)}/'))


def read(store, where):
  """Returns the numpy array at the slices `where` of a store."""
  return np.asarray(store[where].read().result())


def chunk(leaf, shape, size, where):
  """Returns the name of the file in folder `state` that holds what is at `where` of an unpacked array.

  None where that is no whole chunk.

  Args:
    leaf:        keys of the array; shape: its own; size: that of its chunks, as many numbers.
    where:       ints and slices, or `...`.

  >>> chunk(('params', 'w'), (4, 6), (1, 3), (2, slice(3, 6)))
  'params.w/2.1'
  """
  spans = checksum.spans(where, shape)
  if any(len(span) != n or span.start % n for span, n in zip(spans, size)):
    return None
  numbers = [span.start // n for span, n in zip(spans, size)]
  return f'{_name(leaf)}/{".".join(map(str, numbers)) or "0"}'


def steps(directory):
  """Returns the steps in `directory` in ascending order; [] without such a folder."""
  folder = pathlib.Path(directory)
  return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal()) if folder.is_dir() else []


def present(directory, step=None):
  """Returns what `steps` does; raises UserError where there is none, or `step` is not among them."""
  there = steps(directory)
  if step is not None and step not in there:
    raise errors.UserError(f'{directory} has no checkpoint of step {step} (there are: '
                           f'{", ".join(map(str, there)) or "none"})')
  if not there:
    raise errors.UserError(f'{directory} has no checkpoint yet')
  return there
