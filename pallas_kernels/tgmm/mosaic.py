"""The transpose of grouped matmul on Hopper GPUs, by Mosaic GPU; see `pallas_kernels.mosaic`.

A tile of an expert's matrix adds up the products of its rows, in steps of m. The steps begin at the multiple
of 8 at or before the first row, where the copy engine can begin. In the first and the last step rows of other
experts are set to zero in shared memory; the other steps multiply rows as they arrive. An expert without rows
takes no step, and its zeros are written.

An expert's rows are few beside the inner side of a forward product, so storing a tile takes a larger part of
the time here. What the ring leaves of shared memory holds as many panels of the result as fit: a panel is
written there while the panels before it are copied to main memory.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import hopper
from pallas_kernels import mosaic
from pallas_kernels import tuning

TILES = mosaic.Tiles(m=64, n=256, k=128)


def candidates(rows, inner, outer, experts, itemsize):
  """Returns mosaic.Tiles to time, TILES first."""
  return [TILES, *(TILES._replace(**change) for change in (
      dict(stages=3), dict(band=16), dict(band=4), dict(stages=3, band=16), dict(n=128),
      dict(m=128, stages=2)))]


def tgmm(x, dy, sizes, *, tiles=None):
  """Returns [E,K,N], out[e] = x[rows of e]^T @ dy[rows of e]; see `pallas_kernels.tgmm.api`.

  Args:
    x: bf16[M,K] rows.
    dy: bf16[M,N] rows; M, K and N as `hopper.fits` wants them.
    sizes: i32[E].
    tiles: mosaic.Tiles; None: the tiles that were measured fastest, else TILES.
  """
  return _tgmm(x, dy, sizes, tiles, hopper.cores())


def _tgmm(x, dy, sizes, tiles, programs, interpret=None):
  (rows, k), n, experts = x.shape, dy.shape[1], sizes.size
  t = tiles or tuning.choose('tgmm_mosaic', (rows, k, n, experts), x.dtype, candidates)
  end = jnp.cumsum(sizes, dtype=jnp.int32)
  run = mosaic.call(
      functools.partial(_kernel, t=t, programs=programs),
      jax.ShapeDtypeStruct((experts, k, n), x.dtype), a=(t.m, t.k), b=(t.m, t.n),
      scratch=dict(staged=mosaic.swizzled(2, _panels(t, x.dtype.itemsize), t.k, mosaic.PANEL, dtype=x.dtype),
                   masked=plgpu.Barrier(num_arrivals=2)),
      stages=t.stages, programs=programs, interpret=interpret)
  return run(jnp.stack([end - sizes, end]), x, dy)


def _panels(t, itemsize):
  """How many panels [t.k,PANEL] of each warpgroup's half of a tile lie in shared memory beside the ring.

  The number divides that of the half. So the panels take turns from tile to tile as well, and a panel is
  written again only after as many other copies were begun.
  """
  ring, panel = t.stages * t.m * (t.k + t.n) * itemsize, 2 * t.k * mosaic.PANEL * itemsize
  half, room = t.n // 2 // mosaic.PANEL, (mosaic.SHARED - ring) // panel
  return max(number for number in range(1, half + 1) if half % number == 0 and number <= max(room, 1))


def _kernel(bounds, x, dy, out, *, ring, staged, masked, t, programs):
  experts, k, n = out.shape
  half, tall, wide, panels = t.n // 2, pl.cdiv(k, t.k), pl.cdiv(n, t.n), staged.shape[1]
  turns, tile_of = mosaic.turns(experts * tall * wide, programs)

  def place(turn):
    """Expert, first row and column of the tile in its matrix."""
    e = tile_of(turn) // (tall * wide)
    i, j = plgpu.planar_snake(jax.lax.rem(tile_of(turn), tall * wide), (tall, wide), 0, t.band)
    return e, i * t.k, j * t.n

  def rows_of(e):
    """First row of an expert, end, where its steps begin, and how many there are."""
    start, end = bounds[0, e], bounds[1, e]
    at = start // hopper.ALIGNED * hopper.ALIGNED
    return start, end, at, jnp.where(start < end, (end - at + t.m - 1) // t.m, 0)

  def copy():
    def tile(turn, done):
      e, row, col = place(turn)
      _, _, at, steps = rows_of(e)

      def step(i, _):
        rows = pl.ds(pl.multiple_of(at + i * t.m, hopper.ALIGNED), t.m)
        ring.load(done + i, x.at[rows, pl.ds(row, t.k)], dy.at[rows, pl.ds(col, t.n)])
      jax.lax.fori_loop(0, steps, step, None)
      return done + steps
    ring.drain(jax.lax.fori_loop(0, turns, tile, jnp.int32(0)))

  def multiply(warpgroup):
    mine = pl.ds(warpgroup * half, half)

    def tile(turn, done):
      e, row, col = place(turn)
      start, end, at, steps = rows_of(e)

      def only_its_rows(i, slot):
        low, high = start - at - i * t.m, end - at - i * t.m

        @pl.when((low > 0) | (high < t.m))
        def _():                                                     # each warpgroup a half of x and of dy
          _keep(ring.a.at[slot, :, pl.ds(warpgroup * (t.k // 2), t.k // 2)], low, high)
          _keep(ring.b.at[slot, :, mine], low, high)
          plgpu.commit_smem()
          plgpu.barrier_arrive(masked)
          plgpu.barrier_wait(masked)

      operands = lambda slot: (ring.a.at[slot].transpose((1, 0)), ring.b.at[slot, :, mine])
      product = ring.product((t.k, half), done, steps, operands, only_its_rows).astype(out.dtype)
      for c in range(0, half, mosaic.PANEL):
        destination = out.at[e, pl.ds(row, t.k), pl.ds(col + warpgroup * half + c, mosaic.PANEL)]
        mosaic.store(product[:, c:c + mosaic.PANEL], staged.at[warpgroup, c // mosaic.PANEL % panels],
                     functools.partial(plgpu.copy_smem_to_gmem, dst=destination), panels - 1)
      return done + steps
    jax.lax.fori_loop(0, turns, tile, jnp.int32(0))

  mosaic.roles(copy, multiply)


def _keep(ref, low, high):
  """Sets rows of `ref` in shared memory to zero but the rows in [low,high)."""
  row = plgpu.broadcasted_iota(jnp.int32, ref.shape, 0, layout=plgpu.Layout.WGMMA)
  tile = ref[...]
  ref[...] = jnp.where((row >= low) & (row < high), tile, jnp.zeros_like(tile))
