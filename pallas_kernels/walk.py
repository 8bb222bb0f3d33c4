"""How CPUs go through rows sorted by expert: block after block, each of one expert.

XLA has no product of a size known only at run time. It has loops of a length known only then, and a
choice between programs. So a block has one of several sizes, the smallest that holds the remaining rows of
its expert. Rows that the block computes beyond these belong to the next expert, whose blocks come later and
write over them.

A block copies the matrices of its expert out of the bank. A call of a product costs some 0.1 ms on two
cores, whatever its size. Hence one block for all rows of an expert, as long as the expert has not many more
rows than others. Hence also a choice inside one loop: XLA would copy the carry of a loop for every size.

XLA computes a small product on one core, and beside each other only where more than eight operations are
ready. So a turn of the loop has several blocks of such products, all of the size that the largest needs. The
rows of experts that have about as many rows should then lie beside each other.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

LARGEST = 128, 4096                     # the largest size of a block is between these
FEW = 64                                # up to so many rows, as in decoding, blocks are of few rows
SMALL = 2 ** 22                         # multiplications of a product below which a turn has several blocks
TOGETHER = 3                            # so many: fewer gain less, more are compiled longer and gain no more


class Blocks(NamedTuple):
  """Blocks of rows in rising order, `number` of V are there.

  expert, row, count: i32[V] expert, first row, and rows that are of this expert; beyond `number` none are.
  number:             i32[]. sizes: the sizes that a block may have, rising. together: blocks of a turn.
  """
  expert: jax.Array
  row: jax.Array
  count: jax.Array                   # type: ignore[assignment]  # hides the method of tuples
  number: jax.Array
  sizes: tuple
  together: int


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


def together(rows, experts, matrix):
  """Returns how many blocks a turn of the loop has, for M = `rows` rows of `experts` experts.

  matrix: how many numbers the largest matrix of an expert has.

  >>> together(6144, 127, 192 * 192), together(2048, 32, 192 * 768), together(64, 127, 192 * 192)
  (3, 1, 1)
  """
  return TOGETHER if rows > FEW and rows // experts * matrix < SMALL else 1


def blocks(counts, rows, start=None, together=1):
  """Returns the Blocks of M = `rows` rows; expert e has counts[e] rows, from row start[e] on.

  start: i32[E], experts in any order, without a row between them; None: expert after expert.

  >>> cut = blocks(jnp.array([0, 600, 1]), 1000)
  >>> [v[:cut.number].tolist() for v in cut[:3]]
  [[1, 1, 2], [0, 512, 600], [512, 88, 1]]
  """
  if start is not None:
    order = jnp.argsort(start)                                       # [E]
    cut = blocks(counts[order], rows, together=together)
    return cut._replace(expert=order[cut.expert])
  experts = counts.shape[0]
  block_sizes = sizes(rows, experts)
  top = block_sizes[-1]
  end = jnp.cumsum((counts + top - 1) // top)                        # [E] blocks up to the expert's
  most = rows // top + min(experts, rows)
  block = jnp.arange(_up(most, together), dtype=jnp.int32)           # [V]
  expert = jnp.minimum(jnp.searchsorted(end, block, side='right'), experts - 1).astype(jnp.int32)
  before = top * (block - end[expert] + (counts[expert] + top - 1) // top)   # rows of it in earlier blocks
  row = (jnp.cumsum(counts) - counts)[expert] + before
  count = jnp.minimum(counts[expert] - before, top)
  return Blocks(expert, row, count, end[-1], block_sizes, together)


def each(cut, block, put, carry):
  """Carries put(carry, i, block(i, size)) over the blocks i of `cut`, in order.

  block: for the size of i alone it runs; it returns a tree of arrays that are as large for every size.
  """
  def turn(t, carry):
    mine = [t * cut.together + n for n in range(cut.together)]
    for i, made in zip(mine, _choose(cut, t, lambda size: [block(n, size) for n in mine])):
      carry = put(carry, i, made)
    return carry
  return jax.lax.fori_loop(0, (cut.number + cut.together - 1) // cut.together, turn, carry)


def _choose(cut, t, f):
  """f(size) of the size of the blocks of turn t; only that f runs."""
  count = take(cut.count, t * cut.together, cut.together).max()
  which = sum((count > size).astype(jnp.int32) for size in cut.sizes[:-1])
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


def add(x, part, row):
  """Returns x [M,...] with `part` [...] added to one row."""
  return put(x, take(x, row, 1) + part, row)
