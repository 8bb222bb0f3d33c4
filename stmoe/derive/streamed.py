"""Checkpoints written slice by slice, for states larger than memory; `checkpoint` opens them.

A streamed step has every array in its own folder of chunks (zarr). A chunk is a slice that one write fills.
`stored` reads streamed steps and the trainer's.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from stmoe import errors
from stmoe import files
from stmoe.checkpoints import checkpoint
from stmoe.checkpoints import checksum
from stmoe.checkpoints import seal
from stmoe.checkpoints import stored
from stmoe.derive import pieces
from stmoe.interop import disk
from stmoe.surgery import aside
from stmoe.surgery import layout
from stmoe.train import optimizers
from stmoe.train import state as states

MODEL = ('params', 'router_state')


class Writer:
  """A new step in `directory` whose arrays `parts` are to be filled, and whose other arrays are given.

  Args:
    directory: of checkpoints; exists.
    step:      its number.
    shapes:    tree of ShapeDtypeStructs of the parts that will be written slice by slice.
    rest:      tree of all other arrays; what is in its router_state may be filled, too.
    data:      position of the data stream, for JSON.
  """

  def __init__(self, directory, step, shapes, rest, data):
    self._folder = files.plain_path(directory) / str(step)
    self._arrays, self._sums, self._written, self._data = {}, {}, [], data
    self._chunks = {}                    # the size of the chunks of unpacked arrays
    checkpoint.hush()
    self._inventory = checksum.inventory(rest)
    # `array` makes these anew with their shapes, which orbax keeps in the arrays only.
    empty = jax.tree.map(lambda s: np.zeros((), s.dtype), shapes)
    # Arrays of numpy: orbax then keeps no record of their chunks, which `array` changes.
    rest = {key: jax.device_get(x) if key == 'router_state' else x for key, x in rest.items()}
    given = dict(router_state=rest.get('router_state', {}))
    handlers = dict(state=ocp.PyTreeCheckpointHandler(use_ocdbt=False), data=ocp.JsonCheckpointHandler(),
                    meta=ocp.JsonCheckpointHandler())
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    with ocp.CheckpointManager(self._folder.parent, options=options, item_names=tuple(handlers),
                               item_handlers=handlers) as manager:
      state = ocp.args.PyTreeSave(layout.together(empty, rest))
      manager.save(step, force=True, args=ocp.args.Composite(
          state=state, data=ocp.args.JsonSave(data), meta=ocp.args.JsonSave({})))
    for path, x in [*jax.tree.leaves_with_path(given), *jax.tree.leaves_with_path(shapes)]:
      self._arrays[tuple(entry.key for entry in path)] = jax.ShapeDtypeStruct(x.shape, x.dtype)
    self._given = {tuple(entry.key for entry in path) for path, _ in jax.tree.leaves_with_path(given)}

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
    if packed is None:
      self._chunks[leaf] = chunk
    return ts.open(spec, create=True, delete_existing=True, dtype=like.dtype, shape=like.shape).result()

  def write(self, store, leaf, where, value):
    """Writes `value` at the slices `where` of the store of `leaf`; every place is written once.

    Several threads may write at once.
    """
    shape = self._arrays[leaf].shape
    file = stored.chunk(leaf, shape, self._chunks[leaf], where) if leaf in self._chunks else None
    if file is None:
      store[where].write(value, can_reference_source_data_indefinitely=True).result()
    else:                                # the bytes as they are, which tensorstore would copy twice
      path = self._folder / 'state' / file
      disk.write(path, value)
      self._written.append(path)
    self._sums[leaf].append(checksum.part(value, shape, where))

  def finish(self, meta):
    """Writes `meta` with the checksums of all arrays; the step is then like any other step."""
    lost = [leaf for leaf in self._arrays if leaf not in self._given and leaf not in self._sums]
    assert not lost, lost
    for path in self._written:           # the first of them waits for all
      disk.settle(path)
    like = self._arrays
    sums = {'/'.join(map(str, leaf)): [list(like[leaf].shape), sum(parts) % 2**32, str(like[leaf].dtype)]
            for leaf, parts in self._sums.items()}
    files.write_json(self._folder / seal.ITEMS['meta'],
                     seal.close(meta | {'arrays': self._inventory | sums}, self._data), indent=None)
    if lost := stored.Reader(self._folder.parent, self._folder.name).missing():
      raise errors.UserError(f'{self._folder} was written and cannot be read again ({lost})')


def write(directory, cfg, plan, arrays, position, meta):
  """Writes the first checkpoint of `cfg` with the numbers `arrays` of its model, one array after the other.

  Args:
    directory: of checkpoints, to be made; plan: the Blueprint of `cfg`.
    arrays:    nested dict in the numbered form of `layout`, of arrays or `aside.Deferred`.
    position:  of the data; meta: see `start.meta`.
  Raises:
    UserError: an array is of another shape than in the model, or a number is not finite.
  """
  directory.mkdir()
  parts = {part: plan.shapes[part] for part in MODEL}
  sources = layout.sources(layout.together(*parts.values()))         # router state alone has not all blocks
  copies = copied(plan.shapes)
  slots = [(keys(path), s) for path, s in jax.tree.leaves_with_path(
      {part: tree for part, tree in plan.shapes.items() if part not in MODEL}) if keys(path) not in copies]
  small = [leaf for leaf, s in slots if pieces.small(s.shape, s.dtype)]
  rest, large = nested(zip(small, _begun(cfg, plan, small))), nested(
      (leaf, s) for leaf, s in slots if leaf not in small)
  filled = layout.together(parts, large, nested((leaf, layout.held(plan.shapes, leaf)) for leaf in copies))
  writer = Writer(directory, 0, filled, rest, position)
  own = {keys(path): keys(path) for path, _ in jax.tree.leaves_with_path(parts)}
  for leaf, source in (own | copies).items():
    _write_slices(writer, leaf, layout.held(sources, source[1:]), arrays)
  for path, _ in jax.tree.leaves_with_path(large):
    leaf = keys(path)
    _write_rows(writer, writer.array(leaf, _chunk(writer.like(leaf))), leaf, (), _begun(cfg, plan, [leaf])[0])
  writer.finish(meta)


def copied(shapes):
  """Returns dict leaf (a tuple of keys) of the optimizer's state -> the parameter that it begins as.

  Args:
    shapes: tree like a training state.
  """
  copies = {name: shapes['opt_state'][name] for name in optimizers.COPIES if name in shapes['opt_state']}
  leaves = [keys(path) for path, _ in jax.tree.leaves_with_path(copies)]
  return {('opt_state', *leaf): ('params', *leaf[1:]) for leaf in leaves}


def _begun(cfg, plan, leaves):
  """The arrays `leaves` (tuples of keys) of a first training state, of which no other array is computed."""
  def begin():
    state = states.fresh(cfg, plan)
    return [layout.held(state, leaf) for leaf in leaves]
  return jax.jit(begin)()


def _write_slices(writer, leaf, slices, arrays):
  """Writes array `leaf` from the numbered `arrays` that `layout.Slices` names."""
  like = writer.like(leaf)
  chunk = _chunk(jax.ShapeDtypeStruct(like.shape[1:], like.dtype) if slices.stacked else like)
  store = writer.array(leaf, (1, *chunk) if slices.stacked else chunk)
  for number, path in enumerate(slices.paths):
    array, shape = layout.held(arrays, path), like.shape[1:] if slices.stacked else like.shape
    if array.shape != shape:
      raise errors.UserError(f'the surgery made {"/".join(map(str, path))} {array.shape}; in the model of '
                             f'its changes it is {shape}')
    _write_rows(writer, store, leaf, (number,) if slices.stacked else (), array)


def _chunk(like):
  """The shape of the chunks of an array: rows of at most a piece together."""
  if not like.shape:
    return ()
  row = like.dtype.itemsize * max(math.prod(like.shape[1:]), 1)
  return min(max(pieces.BLOCK // row, 1), max(like.shape[0], 1)), *like.shape[1:]


def _write_rows(writer, store, leaf, index, value):
  """Writes `value`, an array or a Deferred, at `index` of array `leaf`, the rows of a chunk at a time."""
  dtype = writer.like(leaf).dtype
  if not value.shape:
    _write_finite(writer, store, leaf, index or ..., np.asarray(value, dtype))
    return
  rows = store.chunk_layout.write_chunk.shape[len(index)]
  for first in range(0, len(value), rows):
    last = min(first + rows, len(value))
    piece = (value.rows(first, last, dtype) if isinstance(value, aside.Deferred)
             else np.asarray(value[first:last], dtype))
    _write_finite(writer, store, leaf, (*index, slice(first, last)), piece)


def _write_finite(writer, store, leaf, where, piece):
  if jnp.issubdtype(piece.dtype, jnp.inexact) and not np.isfinite(piece).all():
    raise errors.UserError(f'{"/".join(map(str, leaf))} is not finite after the surgery')
  writer.write(store, leaf, where, piece)


def keys(path):
  """Returns the tuple of keys of a path of `jax.tree`."""
  return tuple(entry.key for entry in path)


def nested(pairs):
  """Returns the nested dict of pairs (tuple of keys, value)."""
  tree: dict = {}
  for leaf, value in pairs:
    layout.put(tree, leaf, value)
  return tree
