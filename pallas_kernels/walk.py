"""How CPUs go through rows sorted by expert: in blocks, as many as an expert has rows for.

XLA has no product of a size known only at run time; it has loops of a length known only then. An expert's
rows, rounded up to a multiple of the last of SIZES, are cut into as many blocks of the first size as fit, the
rest into smaller ones: at most SIZES[-1] - 1 rows of an expert are computed in vain, those of the next one.
"""

import jax
import jax.numpy as jnp

SIZES = (512, 256, 128, 32)             # each a multiple of the next
FEW = 64                                # up to so many rows, as in decoding, each is a block: none in vain


def sizes(rows):
  """Returns the block sizes for so many rows in all, largest first: a tuple [.].

  >>> sizes(2048), sizes(3)
  ((512, 256, 128, 32), (1,))
  """
  return (1,) if rows <= FEW else SIZES


def blocks(sizes, start, count, block, carry):
  """Carries `block(first row, size, carry)` over `count` rows from row `start`, large blocks first.

  Args:
    sizes: see above; static.
    start, count: i32[].
  """
  row, left = start, (count + sizes[-1] - 1) // sizes[-1] * sizes[-1]
  for size in sizes:
    num = left // size
    body = lambda i, carry, row=row, size=size: block(row + i * size, size, carry)
    carry = jax.lax.fori_loop(0, num, body, carry)
    row, left = row + num * size, left - num * size
  return carry


def busy(counts):
  """Returns (i32[E], i32[]): the experts that have rows first, and their number.

  >>> [v.tolist() for v in busy(jnp.array([0, 3, 0, 1]))]
  [[1, 3, 0, 2], 2]
  """
  some = counts > 0
  return jnp.argsort(~some, stable=True), some.sum(dtype=jnp.int32)


def padded(x):
  """Returns x [M,...] with zeros after it, as many as the last block of the last expert may reach into."""
  return jnp.pad(x, ((0, sizes(x.shape[0])[-1] - 1), *((0, 0),) * (x.ndim - 1)))


def take(x, row, size):
  """Returns rows [size,...] of x [M,...] from `row` on."""
  return jax.lax.dynamic_slice_in_dim(x, row, size, 0)


def put(x, block, row):
  """Returns x [M,...] with `block` [size,...] from `row` on."""
  return jax.lax.dynamic_update_slice_in_dim(x, block.astype(x.dtype), row, 0)
