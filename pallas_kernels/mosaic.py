"""What the kernels for Hopper GPUs share, by Mosaic GPU: a ring of tiles in shared memory.

One warpgroup of a program fills the ring by the copy engine (TMA). Two warpgroups multiply what is in the
ring, each for half of the columns (warp specialisation). There are as many programs as multiprocessors, and a
program computes one tile after the other (a persistent grid). So the ring is filled for the next tile while
the last tile is stored. These are the parts of CUTLASS' kernels for Hopper and of FlashAttention-3 (Shah et
al., 2024, arXiv:2407.08608).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

PANEL = 64                              # columns of bfloat16 in a swizzled row, 128 bytes
SHARED = 227 * 2**10 - 2**11            # bytes of shared memory of a program, without its barriers
COPIES = 2                              # the warpgroup that fills the ring; 0 and 1 multiply
REGISTERS = dict(copy=40, multiply=232)                              # of a thread; 65536 for three warpgroups


class Tiles(NamedTuple):
  """Sides of a tile, steps in shared memory at a time, and rows of tiles that share their columns in L2."""
  m: int
  n: int
  k: int
  stages: int = 4
  band: int = 8


class Ring(NamedTuple):
  """Tiles a [stages,.,.] and b [stages,.,.] of the steps under way, and barriers for each: full, and read."""
  a: Any
  b: Any
  loaded: Any
  freed: Any

  @property
  def stages(self):
    return self.a.shape[0]

  def slot(self, step):
    """Returns where step i32 of a program is, counted over all of its tiles."""
    return jax.lax.rem(step, self.stages)

  def load(self, step, a, b):
    """Begins to copy the tiles of a step from references in main memory, as soon as its slot is free."""
    slot = self.slot(step)

    @pl.when(step >= self.stages)
    def _():
      plgpu.barrier_wait(self.freed.at[slot])
    plgpu.copy_gmem_to_smem(a, self.a.at[slot], self.loaded.at[slot])
    plgpu.copy_gmem_to_smem(b, self.b.at[slot], self.loaded.at[slot])

  def drain(self, steps):
    """Waits until all `steps` have been read."""
    def wait_for(step, _):
      plgpu.barrier_wait(self.freed.at[self.slot(step)])
    jax.lax.fori_loop(jnp.maximum(steps - self.stages, 0), steps, wait_for, None)

  def product(self, shape, first, steps, operands, prepare=None):
    """Returns f32[shape], the sum of the products of operands(slot), two references, over steps from `first`.

    prepare: None, or called with (i, slot) before the product of step first + i.
    """
    def add_up(acc):
      def add(i, _):
        slot = self.slot(first + i)
        plgpu.barrier_wait(self.loaded.at[slot])
        if prepare:
          prepare(i, slot)
        plgpu.wgmma(acc, *operands(slot))
        plgpu.wgmma_wait(1)                                          # the product before has been read

        @pl.when(i > 0)
        def _():
          plgpu.barrier_arrive(self.freed.at[self.slot(first + i - 1)])
      jax.lax.fori_loop(0, steps, add, None)
      return acc[...]
    total = pl.run_scoped(add_up, plgpu.ACC(shape, jnp.float32))

    @pl.when(steps > 0)
    def _():
      plgpu.barrier_arrive(self.freed.at[self.slot(first + steps - 1)])
    return total


def call(kernel, out, a, b, scratch, stages, programs, interpret):
  """Returns the function of arrays that runs kernel(*arrays, out, ring, **scratch) with a Ring.

  Args:
    kernel: of references in main memory, the ring and `scratch`; every warpgroup runs it, see `roles`.
    out: jax.ShapeDtypeStruct of the result.
    a, b: shapes of the tiles of a step.
    scratch: dict of further references.
    stages: steps under way.
    programs: how many programs.
    interpret: None, or how to interpret the kernel, for tests.
  """
  ring = Ring(swizzled(stages, *a, dtype=out.dtype), swizzled(stages, *b, dtype=out.dtype),
              *(plgpu.Barrier(num_arrivals=2, num_barriers=stages) for _ in range(2)))
  run = plgpu.kernel(
      kernel, out_type=out, scratch_types=dict(scratch, ring=ring), grid=(programs,), grid_names=('program',),
      num_threads=3, thread_name='warpgroup', interpret=interpret,
      compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup))

  def narrow(*arrays):
    with jax.enable_x64(False):                                      # kernels know integers of 32 bits
      return run(*arrays)
  return narrow


def swizzled(*shape, dtype):
  """Returns shared memory [...,.] as the tensor cores and the copy engine want it, rows of PANEL columns."""
  return plgpu.SMEM(shape, dtype, transforms=(plgpu.TilingTransform((8, PANEL)), plgpu.SwizzleTransform(128)))


def roles(copy, multiply):
  """Runs copy() on the warpgroup COPIES, and multiply(w) on the other warpgroups w = 0, 1."""
  warpgroup = jax.lax.axis_index('warpgroup')

  @pl.when(warpgroup == COPIES)
  def _():
    plgpu.set_max_registers(REGISTERS['copy'], action='decrease')
    copy()

  @pl.when(warpgroup < COPIES)
  def _():
    plgpu.set_max_registers(REGISTERS['multiply'], action='increase')
    multiply(warpgroup)
    plgpu.wait_smem_to_gmem(0)


def turns(tiles, programs):
  """Returns (how many of `tiles` this program computes, function of a turn that returns its tile)."""
  program = jax.lax.axis_index('program')
  return (tiles - program + programs - 1) // programs, lambda turn: turn * programs + program


def store(tile, staged, copy, under_way=0):
  """Writes a tile of a warpgroup by way of shared memory, as soon as the last tile there has been written.

  Args:
    tile: array.
    staged: reference of the tile's shape in shared memory.
    copy: function of `staged` that begins to copy it to main memory.
    under_way: how many of the warpgroup's last copies, begun one by one, do not read `staged`.
  """
  plgpu.wait_smem_to_gmem(under_way, wait_read_only=True)
  staged[...] = tile
  plgpu.commit_smem()
  copy(staged)
