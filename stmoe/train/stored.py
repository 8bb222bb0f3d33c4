"""The arrays of a checkpoint as they lie on disk, opened one by one without reading them whole.

With `checkpoint` and `streamed` this is all that knows how orbax stores arrays: the trainer's checkpoints
keep all of them in one database, streamed ones have a folder of chunks (zarr) for each.
"""

import math
import pathlib

import numpy as np
import tensorstore as ts

from stmoe import errors
from stmoe import files
from stmoe.train import checksum
from stmoe.train import seal


class Reader:
  """The arrays of one step, opened one by one; raises UserError for what cannot be read.

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

  def array(self, leaf):
    """Returns the store of array `leaf` (a tuple of keys)."""
    try:
      return self._open(leaf).result()
    except ValueError as error:
      raise errors.UserError(f'checkpoint {self._where} cannot be read ({files.reason(error)})') from None

  def _open(self, leaf):
    return ts.open(spec(self._state, leaf, self._database, self._driver), open=True, read=True)

  def share(self, x, shape, where):
    """Returns the share of f32 `x`, at the slices `where` of an array of `shape`, in its checksum."""
    return checksum.part(x, shape, where) if 'format' in self.meta else checksum.plain_sum(x)

  def missing(self):
    """Returns the first path of the inventory whose array is not there in its shape, or None."""
    plain = lambda shape, dtype: math.prod(shape) and not str(dtype).startswith('key')
    stores = {name: self._open(name.split('/')) for name, (shape, _, dtype) in self.inventory.items()
              if plain(shape, dtype)}                                # empty arrays and keys have other forms
    for name, store in stores.items():
      try:
        if list(store.result().shape) != self.inventory[name][0]:
          return name
      except ValueError:
        return name
    return None


def spec(state, leaf, database, driver='zarr'):
  """Returns what tensorstore is told about array `leaf` (keys) in folder `state` of a step."""
  name, folder = '.'.join(map(str, leaf)), f'{state}/'
  file = dict(driver='file', path=folder)
  if database:
    return dict(driver=driver, kvstore=dict(driver='ocdbt', base=file, path=f'{name}/'))
  return dict(driver=driver, kvstore=dict(driver='file', path=f'{folder}{name}/'))


def read(store, where):
  """Returns the numpy array at the slices `where` of a store."""
  return np.asarray(store[where].read().result())


def steps(directory):
  """Returns the steps in `directory` in ascending order."""
  return sorted(int(p.name) for p in pathlib.Path(directory).iterdir() if p.name.isdecimal())
