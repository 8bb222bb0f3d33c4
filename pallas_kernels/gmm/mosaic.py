"""Grouped matmul on Hopper GPUs, by Mosaic GPU; see `pallas_kernels.mosaic`.

An expert's rows are cut into tiles from the multiple of 8 at or before its first row, where the copy engine
can begin. Rows of other experts in a tile are computed in vain. A tile whose rows are all its expert's is
stored by a single copy. Of any other tile the expert's rows are stored, by copies of 64, 32, ... rows as
their number has it in binary, as in tokamax. No row is padded, masked or read back.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import groups
from pallas_kernels import hopper
from pallas_kernels import mosaic
from pallas_kernels import tuning

TILES = mosaic.Tiles(m=128, n=256, k=64)


def candidates(rows, inner, outer, experts, itemsize):
  """Returns mosaic.Tiles to time, TILES first."""
  return [TILES, *(TILES._replace(**change) for change in (
      dict(band=16), dict(band=4), dict(stages=3), dict(n=128), dict(m=64)))]


def gmm(x, w, sizes, *, transposed=False, tiles=None):
  """Returns [M,N], out[r] = x[r] @ w[e(r)]; see `pallas_kernels.gmm.api`.

  Args:
    x: bf16[M,K] rows.
    w: bf16[E,K,N], or [E,N,K] if `transposed`; M, K and N as `hopper.fits` wants them.
    sizes: i32[E].
    tiles: mosaic.Tiles; None: the tiles that were measured fastest, else TILES.
  """
  return _gmm(x, w, sizes, transposed, tiles, hopper.cores())


def _gmm(x, w, sizes, transposed, tiles, programs, interpret=None):
  rows, k = x.shape
  n = w.shape[1 if transposed else 2]
  op = 'gmm_transposed_mosaic' if transposed else 'gmm_mosaic'
  t = tiles or tuning.choose(op, (rows, k, n, w.shape[0]), x.dtype, candidates)
  whole = mosaic.swizzled(2, t.m, mosaic.PANEL, dtype=x.dtype)
  parts = plgpu.SMEM((2, t.m, mosaic.PANEL), x.dtype)                # `whole` has no single rows
  staged = [whole, parts] if interpret else plgpu.RefUnion(whole, parts)
  run = mosaic.call(
      functools.partial(_kernel, t=t, transposed=transposed, programs=programs),
      jax.ShapeDtypeStruct((rows, n), x.dtype),
      a=(t.m, t.k), b=(t.n, t.k) if transposed else (t.k, t.n),
      scratch=dict(staged=staged), stages=t.stages, programs=programs, interpret=interpret)
  return run(*_table(sizes, rows, t.m), x, w)


def _table(sizes, rows, m):
  """(i32[4,tiles], i32[1]): expert, beginning, first row and end of the rows of each tile; how many."""
  tiles = groups.tiles(sizes, rows, m, hopper.ALIGNED)
  return jnp.stack([tiles.group, tiles.at, tiles.first, tiles.end]), tiles.count[None]


def _kernel(table, number, x, w, out, *, ring, staged, t, transposed, programs):
  n, half = out.shape[1], t.n // 2
  steps, wide = x.shape[1] // t.k, pl.cdiv(n, t.n)
  turns, tile_of = mosaic.turns(number[0] * wide, programs)

  def place(turn):
    """Tile of rows, and first column."""
    i, j = plgpu.planar_snake(tile_of(turn), (number[0], wide), 0, t.band)
    return i, j * t.n

  def copy():
    def tile(turn, _):
      i, col = place(turn)
      rows = pl.ds(pl.multiple_of(table[1, i], hopper.ALIGNED), t.m)
      expert, cols = table[0, i], pl.ds(col, t.n)

      def step(j, _):
        inner = pl.ds(j * t.k, t.k)
        right = w.at[expert, cols, inner] if transposed else w.at[expert, inner, cols]
        ring.load(turn * steps + j, x.at[rows, inner], right)
      jax.lax.fori_loop(0, steps, step, None)
    jax.lax.fori_loop(0, turns, tile, None)
    ring.drain(turns * steps)

  def multiply(warpgroup):
    mine = pl.ds(warpgroup * half, half)

    def operands(slot):
      right = ring.b.at[slot, mine].transpose((1, 0)) if transposed else ring.b.at[slot, :, mine]
      return ring.a.at[slot], right

    def tile(turn, _):
      product = ring.product((t.m, half), turn * steps, steps, operands).astype(out.dtype)
      i, col = place(turn)
      _store(product, out, [ref.at[warpgroup] for ref in staged], *(table[row, i] for row in (1, 2, 3)),
             col + warpgroup * half)
    jax.lax.fori_loop(0, turns, tile, None)

  mosaic.roles(copy, multiply)


def _store(product, out, staged, at, first, end, col):
  """Writes the rows in [first,end) of `product` [m,.], which begins at row `at`."""
  m, (whole, parts) = product.shape[0], staged
  for c in range(0, product.shape[1], mosaic.PANEL):
    cols = pl.ds(col + c, mosaic.PANEL)
    panel = product[:, c:c + mosaic.PANEL]

    def all_rows(ref, cols=cols):
      plgpu.copy_smem_to_gmem(ref, out.at[pl.ds(pl.multiple_of(at, hopper.ALIGNED), m), cols])

    def some_rows(ref, cols=cols):
      row, size = first, m // 2
      while size:
        copied = (end - first) & size

        @pl.when(copied != 0)
        def _(row=row, size=size):
          plgpu.copy_smem_to_gmem(ref.at[pl.ds(row - at, size)], out.at[pl.ds(row, size), cols])
        row, size = row + copied, size // 2

    full = end - first == m
    pl.when(full)(functools.partial(mosaic.store, panel, whole, all_rows))
    pl.when(jnp.logical_not(full))(functools.partial(mosaic.store, panel, parts, some_rows))
