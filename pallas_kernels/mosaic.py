"""What the kernels for Hopper GPUs share, by Mosaic GPU: a ring of tiles in shared memory.

One warpgroup of a program fills the ring by the copy engine (TMA), two multiply what is in it, each half of
the columns (warp specialisation). A program computes one tile after the other, as many programs as there are
multiprocessors (a persistent grid): the ring is filled for the next tile while the last one is stored. These
are the parts of CUTLASS' kernels for Hopper and of FlashAttention-3 (Shah et al., 2024, arXiv:2407.08608).
"""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import tuning

HOPPER = re.compile(r'\bG?H(20|100|200|800)\b')
ALIGNED = 8                             # rows: the copy engine begins at multiples of it, in this layout
PANEL = 64                              # columns of bfloat16 in one swizzled row, 128 bytes
WIDTH = 128                             # matrices must be multiples of it along both sides
FEWEST = 128                            # rows an expert has on average, for tiles to be full: see `fits`
COPIES = 2                              # the warpgroup that fills the ring; 0 and 1 multiply
REGISTERS = dict(copy=40, multiply=232)                              # of a thread; 65536 for three warpgroups


class Tiles(NamedTuple):
  """Sides of a tile, steps in shared memory at a time, and rows of tiles that share their columns in L2."""
  m: int
  n: int
  k: int
  stages: int = 4
  band: int = 8


def cores():
  """Returns how many multiprocessors the Hopper GPU has that programs run on; None if it is no Hopper.

  That is a GPU of the mesh in use, which this process need not have; without a mesh, the one it has.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device or _here()
  if device is None or not HOPPER.search(device.device_kind):
    return None
  return getattr(device, 'num_cores', None) or device.core_count


def _here():
  try:
    return jax.local_devices(backend='gpu')[0]
  except RuntimeError:                                               # there is none
    return None


def fits(rows, experts, dtype, *widths):
  """Returns whether these kernels run, and fast: on Hopper, in bfloat16, for even sizes and full tiles."""
  return (cores() is not None and dtype == jnp.bfloat16 and rows % ALIGNED == 0 and rows >= FEWEST * experts
          and all(width % WIDTH == 0 for width in widths))


def pays(width):
  """Returns whether rows by a list are gathered to be multiplied here, for products of another side `width`.

  Gathering takes as long whatever follows, what follows gains in proportion to the width, and two products
  share the rows that are gathered. Times of two products over their dense floor, by Triton with the list and
  by these kernels after a gather (H200, experiments/kernels/h200.json): 2.81 and 2.77 for width 1024, 3.12
  and 2.80 for 1408, 2.53 and 2.48 for 2048, 2.52 and 2.16 for 14336. Where it is level, a list needs less
  memory.
  """
  return width > 1024


def choose(op, rows, inner, outer, experts, guess):
  """Returns the Tiles that were measured fastest for `op`, else the guess; see `tuning.choose`."""
  return tuning.choose(op, (rows, inner, outer, experts), jnp.bfloat16, lambda *_: [guess])


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
    def one(step, _):
      plgpu.barrier_wait(self.freed.at[self.slot(step)])
    jax.lax.fori_loop(jnp.maximum(steps - self.stages, 0), steps, one, None)

  def product(self, shape, first, steps, operands, prepare=None):
    """Returns f32[shape], the sum of the products of operands(slot), two references, over steps from `first`.

    prepare: None, or called with (i, slot) before the product of step first + i.
    """
    def add_up(acc):
      def one(i, _):
        slot = self.slot(first + i)
        plgpu.barrier_wait(self.loaded.at[slot])
        if prepare:
          prepare(i, slot)
        plgpu.wgmma(acc, *operands(slot))
        plgpu.wgmma_wait(1)                                          # the one before has been read

        @pl.when(i > 0)
        def _():
          plgpu.barrier_arrive(self.freed.at[self.slot(first + i - 1)])
      jax.lax.fori_loop(0, steps, one, None)
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
    a, b: shapes of the tiles of one step.
    scratch: dict of further references.
    stages: steps under way.
    programs: how many.
    interpret: None, or how to interpret it, for tests.
  """
  ring = Ring(swizzled(stages, *a, dtype=out.dtype), swizzled(stages, *b, dtype=out.dtype),
              *(plgpu.Barrier(num_arrivals=2, num_barriers=stages) for _ in range(2)))
  return plgpu.kernel(
      kernel, out_type=out, scratch_types=dict(scratch, ring=ring), grid=(programs,), grid_names=('program',),
      num_threads=3, thread_name='warpgroup', interpret=interpret,
      compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup))


def swizzled(*shape, dtype):
  """Returns shared memory [...,.] as the tensor cores and the copy engine want it, rows of PANEL columns."""
  return plgpu.SMEM(shape, dtype, transforms=(plgpu.TilingTransform((8, PANEL)), plgpu.SwizzleTransform(128)))


def roles(copy, multiply):
  """Runs copy() on the warpgroup COPIES, and multiply(w) on the others w = 0, 1."""
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
  """Returns (how many of `tiles` this program computes, function of its turn that returns the tile)."""
  program = jax.lax.axis_index('program')
  return (tiles - program + programs - 1) // programs, lambda turn: turn * programs + program


def store(tile, staged, copy):
  """Writes a tile of a warpgroup by way of shared memory, as soon as what is there has been written.

  Args:
    tile: array.
    staged: reference of its shape in shared memory.
    copy: function of `staged` that begins to copy it to main memory.
  """
  plgpu.wait_smem_to_gmem(0, wait_read_only=True)
  staged[...] = tile
  plgpu.commit_smem()
  copy(staged)
