"""Checkpoints written and read slice by slice: what `checkpoint` opens, for states larger than memory.

A streamed step has every array in its own folder of chunks (zarr), each chunk a slice that one write fills.
Reading also knows the other form, in which the trainer's own checkpoints keep all arrays in one database.
With `checkpoint`, this is the only file that knows how orbax puts arrays on disk.
"""

import json
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from stmoe import errors
from stmoe.train import checkpoint


class Writer:
  """A new step in `directory` whose arrays `parts` are to be filled, and whose others are given.

  Args:
    directory: of checkpoints; exists.
    step:      its number.
    shapes:    tree of ShapeDtypeStructs of the parts that will be written slice by slice.
    rest:      tree of the arrays of all other parts.
    data:      position of the data stream, for JSON.
  """

  def __init__(self, directory, step, shapes, rest, data):
    self._folder = pathlib.Path(directory).resolve() / str(step)
    self._shapes, self._sums = {}, {}
    checkpoint.hush()
    self._inventory = checkpoint.inventory(rest)
    # `array` makes them anew with their shapes, which orbax keeps in the arrays only.
    empty = jax.tree.map(lambda s: np.zeros((), s.dtype), shapes)
    # Arrays of numpy: orbax then keeps no record of their chunks, which `array` changes.
    rest = {key: jax.device_get(x) if key == 'router_state' else x for key, x in rest.items()}
    handlers = dict(state=ocp.PyTreeCheckpointHandler(use_ocdbt=False), data=ocp.JsonCheckpointHandler(),
                    meta=ocp.JsonCheckpointHandler())
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    with ocp.CheckpointManager(self._folder.parent, options=options, item_names=tuple(handlers),
                               item_handlers=handlers) as manager:
      manager.save(step, force=True, args=ocp.args.Composite(
          state=ocp.args.PyTreeSave(empty | rest), data=ocp.args.JsonSave(data), meta=ocp.args.JsonSave({})))
    for path, x in jax.tree.leaves_with_path(shapes | {'router_state': rest['router_state']}):
      self._shapes[tuple(entry.key for entry in path)] = x.shape

  def shape(self, leaf):
    """Returns the shape of array `leaf` (a tuple of keys)."""
    return self._shapes[leaf]

  def array(self, leaf, chunk):
    """Returns the store of array `leaf` (a tuple of keys), made anew in chunks of shape `chunk`."""
    spec = _spec(self._folder / 'state', leaf, database=False)
    spec |= dict(metadata=dict(compressor=dict(id='zstd', level=1), chunks=list(chunk)))
    self._sums[leaf] = 0
    return ts.open(spec, create=True, delete_existing=True, dtype=np.float32,
                   shape=self._shapes[leaf]).result()

  def write(self, store, leaf, where, value):
    """Writes f32 `value` at the slices `where` of the store of `leaf`; each place once."""
    self._sums[leaf] += words(value)
    store[where].write(value).result()

  def finish(self, meta):
    """Writes `meta` with the checksums of all arrays; the step is then like any other."""
    lost = [leaf for leaf in self._shapes if leaf[0] != 'router_state' and leaf not in self._sums]
    assert not lost, lost
    sums = {'/'.join(map(str, leaf)): [list(self._shapes[leaf]), total % 2**32]
            for leaf, total in self._sums.items()}
    text = json.dumps(meta | {'arrays': self._inventory | sums})
    (self._folder / 'meta' / 'metadata').write_text(text, encoding='utf-8')


class Reader:
  """The arrays of one step, opened one by one."""

  def __init__(self, directory, step):
    self._state = pathlib.Path(directory).resolve() / str(step) / 'state'
    facts = json.loads((self._state / '_METADATA').read_text(encoding='utf-8'))
    self._database = facts.get('use_ocdbt', True)
    self._driver = 'zarr3' if facts.get('use_zarr3') else 'zarr'
    self.step = step
    self.meta = json.loads((self._state.parent / 'meta' / 'metadata').read_text(encoding='utf-8'))
    self.inventory = self.meta['arrays']                             # as `checkpoint.inventory`

  def array(self, leaf):
    """Returns the store of array `leaf` (a tuple of keys)."""
    try:
      return ts.open(_spec(self._state, leaf, self._database, self._driver), open=True).result()
    except ValueError as error:
      text = ' '.join(str(error).split())[:120]
      raise errors.UserError(f'checkpoint {self._state.parent} cannot be read ({text})') from None


def _spec(state, leaf, database, driver='zarr'):
  name, folder = '.'.join(map(str, leaf)), f'{state}/'
  if database:
    return dict(driver=driver, kvstore=dict(driver='ocdbt', base=f'file://{folder}', path=f'{name}/'))
  return dict(driver=driver, kvstore=dict(driver='file', path=f'{folder}{name}/'))


def read(store, where):
  """Returns the numpy array at the slices `where` of a store."""
  return np.asarray(store[where].read().result())


def words(x):
  """Returns the sum of the 32-bit words of f32 `x`: modulo 2^32 the checksum of `checkpoint.inventory`."""
  return int(np.sum(np.ascontiguousarray(x).view(np.uint32), dtype=np.uint64))


def steps(directory):
  """Returns the steps in `directory` in ascending order."""
  return sorted(int(p.name) for p in pathlib.Path(directory).glob('*') if p.name.isdigit())
