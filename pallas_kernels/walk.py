"""How CPUs go through rows sorted by expert: block after block, each of one expert.

XLA has no product of a size known only at run time. It has loops of a length known only then, and a
choice between programs. So a block has one of several sizes, the smallest that holds the remaining rows of
its expert. Rows that the block computes beyond these belong to the next expert, whose blocks come later and
write over them.

A block copies the matrices of its expert out of the bank. A call of a product costs some 0.1 ms on two
cores, whatever its size. Hence one block for all rows of an expert, as long as the expert has not many more
rows than others. Hence also a choice inside one loop: XLA would copy the carry of a loop for every size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

LARGEST = 128, 4096                     # the largest size of a block is between these
FEW = 64                                # up to so many rows, as in decoding, blocks are of few rows


class Blocks(NamedTuple):
  """Blocks of rows in rising order, `number` of V are there.

  expert, row, count: i32[V] expert, first row, and rows that are of this expert.
  number:             i32[]. sizes: the sizes that a block may have, rising.
  """
  expert: jax.Array
  row: jax.Array
  count: jax.Array                   # type: ignore[assignment]  # hides the method of tuples
  number: jax.Array
  sizes: tuple


def sizes(rows, experts):
  """Returns the tuple of sizes for M = `rows` rows of `experts` experts, rising.

  The largest size holds half as many again as an equal share. Most experts that tokens are balanced over have
  more than half of that size: there sizes are a thirty-second of it apart. Below sizes are an eighth apart,
  because every size is compiled.

  >>> sizes(2048, 8)
  (48, 96, 144, 192, 208, 224, 240, 256, 272, 288, 304, 320, 336, 352, 368, 384)

  Few rows take about as long as the copies of matrices: as few blocks as experts, up to twice an equal share.

  >>> sizes(2, 8), sizes(16, 8), sizes(64, 8)
  ((1,), (1, 2, 4), (1, 2, 4, 8, 16))
  """
  if rows <= FEW:
    return tuple(2 ** n for n in range(max(2 * rows // experts, 1).bit_length()))
  least, most = LARGEST
  top = min(max(_up(3 * rows // (2 * experts), 64), least), most)
  few = range(top // 8, top // 2 + 1, top // 8)
  return (*few, *reversed(range(top, top // 2, -_up(top // 32, 16))))


def _up(number, unit):
  return -(-number // unit) * unit


def blocks(counts, rows):
  """Returns the Blocks of M = `rows` rows; expert e has counts[e] rows.

  >>> cut = blocks(jnp.array([0, 600, 1]), 1000)
  >>> [v[:cut.number].tolist() for v in cut[:3]]
  [[1, 1, 2], [0, 512, 600], [512, 88, 1]]
  """
  experts = counts.shape[0]
  block_sizes = sizes(rows, experts)
  top = block_sizes[-1]
  end = jnp.cumsum((counts + top - 1) // top)                        # [E] blocks up to the expert's
  block = jnp.arange(rows // top + min(experts, rows), dtype=jnp.int32)      # [V], the most there can be
  expert = jnp.minimum(jnp.searchsorted(end, block, side='right'), experts - 1).astype(jnp.int32)
  before = top * (block - end[expert] + (counts[expert] + top - 1) // top)   # rows of it in earlier blocks
  row = (jnp.cumsum(counts) - counts)[expert] + before
  return Blocks(expert, row, jnp.minimum(counts[expert] - before, top), end[-1], block_sizes)


def each(cut, block, carry):
  """Carries `block(i, carry)` over the blocks of `cut`, in order."""
  return jax.lax.fori_loop(0, cut.number, block, carry)


def choose(cut, i, f):
  """Returns f(size) of the size of block i; only that f runs: a tree of arrays, [.] for every size."""
  which = sum((cut.count[i] > size).astype(jnp.int32) for size in cut.sizes[:-1])
  branches = [lambda size=size: f(size) for size in cut.sizes]
  return jax.lax.switch(which, branches) if len(branches) > 1 else branches[0]()


@jax.named_scope('pad')
def whole(cut, y):
  """Returns rows y [size,...] with zeros after them, up to the largest size."""
  return jnp.pad(y, ((0, cut.sizes[-1] - y.shape[0]), *((0, 0),) * (y.ndim - 1)))


def room(cut, x):
  """Returns x [M,...] with zeros after it, as many as a block may reach into: [M+P,...]."""
  return jnp.pad(x, ((0, cut.sizes[-1]), *((0, 0),) * (x.ndim - 1)))


@jax.named_scope('place')
def take(x, row, size):
  """Returns rows [size,...] of x [M,...] from `row` on."""
  return jax.lax.dynamic_slice_in_dim(x, row, size, 0)


@jax.named_scope('place')
def put(x, block, row):
  """Returns x [M,...] with `block` [size,...] from `row` on."""
  return jax.lax.dynamic_update_slice_in_dim(x, block.astype(x.dtype), row, 0)
