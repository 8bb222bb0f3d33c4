"""Checksums of arrays that see a changed value and a changed place, on any sharding, whole or in slices.

The checksum is a sum modulo 2^32 over all elements of `mix(word) * weight(place)`: `word` holds the bits of
the element, `place` is its flat index in the whole array. Exact integers make the order of the sum
irrelevant, and an odd weight of its own for every place shows two exchanged words.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from stmoe.hosts import distributed

BLOCK = 1 << 15                          # elements at a time, so that they stay in a core's cache
FOLD, SPREAD = np.uint32(0x9E3779B1), np.uint32(0x85EBCA77)


def inventory(state):
  """Returns dict path -> [shape, checksum, dtype] of the arrays of `state`, for JSON."""
  return examined(state)[0]


def examined(state):
  """Returns (what `inventory` returns, what `not_finite` returns) of one pass over the arrays of `state`."""
  found = _of_all(_facts, state)
  return ({path: [list(x.shape), int(total), str(x.dtype)] for path, x, (total, _) in found},
          next((path for path, _, (_, whole) in found if not whole), None))


def not_finite(state):
  """Returns the path of the first array of `state` with a number that is not finite, or None."""
  return next((path for path, _, whole in _of_all(finite, state) if not whole), None)


def finite(x):
  """Returns bool[]: whether every number of an array [...] is finite; one that holds no floats is."""
  return jnp.all(jnp.isfinite(x)) if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.bool_(True)


def name(path):
  """Returns the path of an array in a tree as text: 'params/units/0/w'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _of_all(work, state):
  """[(path, array, `work(array)`)] of the arrays of `state`, on the devices of each array."""
  mesh = next((x.sharding.mesh for x in jax.tree.leaves(state) if hasattr(x.sharding, 'mesh')), None)
  arrays = jax.tree.leaves_with_path(state)
  found = jax.device_get(_compiled(work, mesh and distributed.everywhere(mesh))([x for _, x in arrays]))
  return [(name(path), x, one) for (path, x), one in zip(arrays, found)]


@functools.cache
def _compiled(work, sharding):
  of_one = jax.jit(work)                                             # is traced once for arrays of one shape
  return jax.jit(lambda arrays: [of_one(x) for x in arrays], out_shardings=sharding)


def _words(x):
  """The words [...] u32 of an array; a key has several."""
  x = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
  unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
  return (jax.lax.bitcast_convert_type(x, unsigned) if x.dtype != bool else x).astype(jnp.uint32)


def _sum(x):
  x = _words(x)
  place = jnp.zeros(x.shape, jnp.uint32)                             # flat index modulo 2^32
  for axis, stride in enumerate(strides(x.shape)):
    place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride)
  return jnp.sum(mix(x) * weight(place), dtype=jnp.uint32)


def _facts(x):
  return _sum(x), finite(x)


def _plain_sum(x):
  return jnp.sum(_words(x), dtype=jnp.uint32)


def part(x, shape, where=...):
  """Returns the share of numpy `x`, at the slices `where` of an array of `shape`, in that array's checksum.

  x: of the dtype of the whole array, of at most four bytes.

  >>> x = np.arange(6, dtype=np.float32).reshape(2, 3)
  >>> whole = part(x, (2, 3))
  >>> (part(x[:, :1], (2, 3), np.s_[:, :1]) + part(x[:, 1:], (2, 3), np.s_[:, 1:])) % 2**32 == whole
  True
  >>> whole == inventory(dict(x=jnp.asarray(x)))['x'][1]
  True
  """
  where = () if where is ... else where if isinstance(where, tuple) else (where,)
  where = [slice(at, at + 1) if isinstance(at, int) else at for at in where]
  where += [slice(None)] * (len(shape) - len(where))
  spans = [range(size)[at] for size, at in zip(shape, where)]
  words = _stored_words(x)
  if not words.size:
    return 0
  place = np.zeros(1, np.uint32)                                     # of the first element of every row
  along = np.zeros(1, np.uint32)                                     # from there to the row's other elements
  for axis, (span, stride) in enumerate(zip(spans, strides(shape))):
    steps = (np.arange(span.start, span.stop, dtype=np.uint64) * np.uint64(stride)).astype(np.uint32)
    if axis < len(shape) - 1:
      place = (place[:, None] + steps).reshape(-1)
    else:
      along = steps
  words, total = words.reshape(len(place), -1), np.uint32(0)
  rows, first, then = max(BLOCK // len(along), 1), place * FOLD, along * FOLD
  for at in range(0, len(place), rows):
    for column in range(0, len(along), BLOCK):
      block = words[at:at + rows, column:column + BLOCK]
      terms = first[at:at + rows, None] + then[column:column + BLOCK]            # place * FOLD
      terms ^= terms >> np.uint32(15)                                # as in `weight`, without new arrays
      terms *= SPREAD
      terms |= np.uint32(1)
      terms *= mix(block) if block.itemsize == 4 else block
      total = np.add(total, np.add.reduce(terms, axis=None), dtype=np.uint32)
  return int(total)


def _stored_words(x):
  """The words of numpy `x`: u32 [...] of float32, u16 [...] of bfloat16, u8 [...] of bytes."""
  x = np.ascontiguousarray(x)
  return x.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[x.dtype.itemsize])


def mix(word):
  """Returns u32 words [...] whose low bits depend on the high bits; in bfloat16 values the low bits are 0."""
  return word ^ (word >> 16)


def weight(place):
  """Returns an odd u32 [...] for every place u32 [...]."""
  place = place * FOLD
  return ((place ^ (place >> 15)) * SPREAD) | 1


def strides(shape):
  """Returns the steps between neighbours of each axis in the flat array, modulo 2^32.

  >>> strides((2, 3, 4))
  [12, 4, 1]
  """
  steps = [1]
  for size in reversed(shape[1:]):
    steps.insert(0, steps[0] * size % 2**32)
  return steps[:len(shape)]


def plain_sum(x):
  """Returns the sum of the words of numpy `x`: its share in the checksum of format 1."""
  return int(np.sum(_stored_words(x), dtype=np.uint64))


def plain_sums(state):
  """Returns dict path -> [shape, sum of the words modulo 2^32]: what checkpoints of format 1 hold."""
  return {path: [list(x.shape), int(total)] for path, x, total in _of_all(_plain_sum, state)}
