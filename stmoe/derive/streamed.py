"""Checkpoints written slice by slice, for states larger than memory; `checkpoint` opens them.

A streamed step has every array in its own folder of chunks (zarr). A chunk is a slice that one write fills.
`stored` reads streamed steps and the trainer's.
"""

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from stmoe import errors
from stmoe import files
from stmoe.checkpoints import checkpoint
from stmoe.checkpoints import checksum
from stmoe.checkpoints import seal
from stmoe.checkpoints import stored


class Writer:
  """A new step in `directory` whose arrays `parts` are to be filled, and whose other arrays are given.

  Args:
    directory: of checkpoints; exists.
    step:      its number.
    shapes:    tree of ShapeDtypeStructs of the parts that will be written slice by slice.
    rest:      tree of the arrays of all other parts.
    data:      position of the data stream, for JSON.
  """

  def __init__(self, directory, step, shapes, rest, data):
    self._folder = files.plain_path(directory) / str(step)
    self._arrays, self._sums, self._data = {}, {}, data
    checkpoint.hush()
    self._inventory = checksum.inventory(rest)
    # `array` makes these anew with their shapes, which orbax keeps in the arrays only.
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
      self._arrays[tuple(entry.key for entry in path)] = jax.ShapeDtypeStruct(x.shape, x.dtype)

  def like(self, leaf):
    """Returns the ShapeDtypeStruct of array `leaf` (a tuple of keys)."""
    return self._arrays[leaf]

  def array(self, leaf, chunk):
    """Returns the store of array `leaf` (a tuple of keys), made anew in chunks of shape `chunk`."""
    like = self._arrays[leaf]
    # The low bits of bfloat16 are noise, and its high bits too few: to pack them takes time and saves little.
    packed = dict(id='zstd', level=1) if like.dtype == np.float32 else None
    spec = stored.spec(self._folder / 'state', leaf, database=False)
    spec |= dict(metadata=dict(compressor=packed, chunks=list(chunk)))
    self._sums[leaf] = []
    return ts.open(spec, create=True, delete_existing=True, dtype=like.dtype, shape=like.shape).result()

  def write(self, store, leaf, where, value):
    """Writes `value` at the slices `where` of the store of `leaf`; every place is written once.

    Several threads may write at once.
    """
    written = store[where].write(value, can_reference_source_data_indefinitely=True)
    self._sums[leaf].append(checksum.part(value, self._arrays[leaf].shape, where))
    written.result()

  def finish(self, meta):
    """Writes `meta` with the checksums of all arrays; the step is then like any other step."""
    lost = [leaf for leaf in self._arrays if leaf[0] != 'router_state' and leaf not in self._sums]
    assert not lost, lost
    like = self._arrays
    sums = {'/'.join(map(str, leaf)): [list(like[leaf].shape), sum(parts) % 2**32, str(like[leaf].dtype)]
            for leaf, parts in self._sums.items()}
    files.write_json(self._folder / seal.ITEMS['meta'],
                     seal.close(meta | {'arrays': self._inventory | sums}, self._data), indent=None)
    if lost := stored.Reader(self._folder.parent, self._folder.name).missing():
      raise errors.UserError(f'{self._folder} was written and cannot be read again ({lost})')
