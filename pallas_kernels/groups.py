"""Which tiles of rows hold rows of which group, for kernels that walk over rows sorted by group.

On TPUs all rows are cut into tiles of equal height. A tile is visited once for every group that has rows in
it, in order of rows. So the visits of a tile follow each other, and so do the visits of a group (`visits`).
On GPUs every group is cut into tiles of its own (`tiles`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Visits(NamedTuple):
  """Pairs of a group and a tile that it has rows in, V = ceil(M/height) + E - 1 pairs at most.

  group: i32[V] the group of a visit; beyond `count` anything in [0,E).
  tile:  i32[V] the tile of a visit; beyond `count` anything in range.
  start: i32[E+1] first row of a group, and the end of the last.
  count: i32[] how many visits there are, 1 at least.
  """
  group: jax.Array
  tile: jax.Array
  start: jax.Array
  count: jax.Array                   # type: ignore[assignment]  # hides the method of tuples


def visits(sizes, rows, height, *, empty=False):
  """Returns the Visits of groups with `sizes` i32[E] among M rows in tiles of `height`.

  Args:
    sizes: i32[E] rows of each group, sum(sizes) <= rows.
    rows: M.
    height: rows of a tile; the last tile may be cut.
    empty: whether groups without rows are visited as well, once each, to write their result.

  Tile 0 holds the two rows of group 0 and two rows of group 2, whose last row is in tile 1:

  >>> found = visits(jnp.array([2, 0, 3]), 8, 4)
  >>> int(found.count), found.group[:3].tolist(), found.tile[:3].tolist(), found.start.tolist()
  (3, [0, 2, 2], [0, 0, 1], [0, 2, 2, 5])
  """
  number, tiles = sizes.shape[0], -(-rows // height)
  end = jnp.cumsum(sizes, dtype=jnp.int32)                           # [E]
  start = end - sizes
  first = jnp.minimum(start // height, tiles - 1)
  spans = jnp.where(sizes > 0, (end - 1) // height - first + 1, int(empty))
  upto = jnp.cumsum(spans, dtype=jnp.int32)                          # [E] visits of groups up to each group
  visit = jnp.arange(tiles + number - 1, dtype=jnp.int32)            # [V]
  group = jnp.sum(visit[:, None] >= upto, axis=1, dtype=jnp.int32)
  group = jnp.minimum(group, number - 1)
  tile = jnp.clip(first[group] + visit - (upto - spans)[group], 0, tiles - 1)
  return Visits(group=group, tile=tile, start=jnp.pad(end, (1, 0)), count=jnp.maximum(upto[-1], 1))


class Tiles(NamedTuple):
  """Tiles of V >= count, each with rows of one group; spare tiles beyond `count` have no rows.

  group: i32[V] whose rows a tile has.
  at:    i32[V] the row where it begins; first, end: i32[V] its group's rows in it, [first,end).
  count: i32[] how many tiles there are.
  """
  group: jax.Array
  at: jax.Array
  first: jax.Array
  end: jax.Array
  count: jax.Array                   # type: ignore[assignment]  # hides the method of tuples


def tiles(sizes, rows, height, aligned=1):
  """Returns the Tiles of groups with `sizes` i32[E] among M rows, as many as these can need at most.

  Args:
    sizes: i32[E] rows of each group, sum(sizes) <= rows.
    rows: M.
    height: rows of a tile.
    aligned: tiles begin at multiples of this, so that a group's first tile may begin before its first row.

  Groups of one, no and three rows; tiles of two rows that begin at even rows:

  >>> found = tiles(jnp.array([1, 0, 3]), 4, 2, aligned=2)
  >>> [v[:int(found.count)].tolist() for v in found[:4]]
  [[0, 2, 2], [0, 0, 2], [0, 1, 2], [1, 2, 4]]
  """
  some = min(sizes.shape[0], rows)                                   # groups that can have rows
  upto = jnp.cumsum(sizes, dtype=jnp.int32)                          # [E] end of a group
  start = upto - sizes
  begin = start // aligned * aligned
  number = jnp.where(sizes > 0, -(-(upto - begin) // height), 0)     # [E] tiles of a group
  last = jnp.cumsum(number, dtype=jnp.int32)
  tile = jnp.arange((rows + (aligned - 2) * some) // height + some, dtype=jnp.int32)
  group = jnp.searchsorted(last, tile, side='right', method='compare_all').astype(jnp.int32)
  group = jnp.minimum(group, sizes.shape[0] - 1)
  at = begin[group] + (tile - last[group] + number[group]) * height
  return Tiles(group=group, at=at, first=jnp.maximum(at, start[group]),
               end=jnp.minimum(at + height, upto[group]), count=last[-1])
