"""Transposed grouped matmul on TPUs: sums over the tiles that a group has rows in, then the next group.

As in megablox (jax/experimental/pallas/ops/tpu/megablox in JAX) the grid walks over pairs of a group and a
tile of rows. The pairs are prefetched as scalars, and there are as many steps as pairs. Rows of other groups
are set to zero in the tiles at both ends of a group; the tiles between are multiplied as they are. A group
without rows is visited once, with a tile of which nothing is left, and so gets zeros.
"""

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from pallas_kernels import groups
from pallas_kernels import listing
from pallas_kernels import tuning
from pallas_kernels import vmem


def tgmm(x, dy, sizes, token=None, dy_token=None, *, tiles=None, interpret=False):
  """Returns [E,K,N], out[e] = x[rows of e]^T @ dy[rows of e]; see `api.tgmm`.

  Products of bfloat16 are exact in the float32 that they are added in; float32 is multiplied in full
  precision, not in one pass of bfloat16.

  Args:
    x: [M,K], or with `token` [T,K].
    dy: [M,N], or with `dy_token` [T',N].
    sizes: i32[E].
    token, dy_token: None, or i32[M]: rows x[token] and dy[dy_token] are gathered first.
    tiles: vmem.Tiles, of x [m,k] and dy [m,n]; None: see `tuning.choose`.
    interpret: False, True, or pltpu.InterpretParams: run on a CPU, for tests.
  """
  x, dy = listing.take(x, token), listing.take(dy, dy_token)         # [M, K], [M, N]
  (rows, inner), outer, experts = x.shape, dy.shape[1], sizes.shape[0]
  tiles = tiles or tuning.choose('tgmm', (rows, inner, outer, experts), x.dtype, candidates)
  tm, tk, tn = map(min, tiles, (rows, inner, outer))
  visits = groups.visits(sizes, rows, tm, empty=True)
  inners, outers = pl.cdiv(inner, tk), pl.cdiv(outer, tn)
  call = pl.pallas_call(
      _kernel,
      out_shape=jax.ShapeDtypeStruct((experts, inner, outer), x.dtype),
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=4, grid=(outers, inners, visits.count),
          in_specs=[pl.BlockSpec((tm, tk), lambda n, k, v, group, tile, start, count: (tile[v], k)),
                    pl.BlockSpec((tm, tn), lambda n, k, v, group, tile, start, count: (tile[v], n))],
          out_specs=pl.BlockSpec((None, tk, tn), lambda n, k, v, group, tile, start, count: (group[v], k, n)),
          scratch_shapes=[pltpu.VMEM((tk, tn), jnp.float32)]),
      compiler_params=pltpu.CompilerParams(
          dimension_semantics=('parallel', 'parallel', 'arbitrary'),
          vmem_limit_bytes=vmem.limit(_bytes(vmem.Tiles(tm, tk, tn), x.dtype.itemsize))),
      cost_estimate=pl.CostEstimate(
          flops=2 * rows * inner * outer, transcendentals=0,
          bytes_accessed=(x.size * outers + dy.size * inners + experts * inner * outer) * x.dtype.itemsize),
      interpret=interpret, name='tgmm')
  return call(visits.group, visits.tile, visits.start, visits.count[None], x, dy)


def _kernel(group, tile, start, count, x, dy, out, total):
  """A step: adds the product of a tile's rows of a group, and writes the sum after the group's last tile."""
  visit = pl.program_id(2)
  mine, height = group[visit], x.shape[0]
  first, last = start[mine] - tile[visit] * height, start[mine + 1] - tile[visit] * height
  whole = (first <= 0) & (last >= height)

  def product(left, right):
    return jax.lax.dot_general(
        left, right, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32,
        precision=vmem.PRECISION[x.dtype.name])

  def rows_of_group(ref):
    row = jax.lax.broadcasted_iota(jnp.int32, ref.shape, 0)
    return jnp.where((first <= row) & (row < last), ref[...], 0).astype(ref.dtype)

  @pl.when((visit == 0) | (mine != group[jnp.maximum(visit - 1, 0)]))
  def _():
    total[...] = jnp.zeros_like(total)

  @pl.when(whole)
  def _():
    total[...] += product(x[...], dy[...])

  @pl.when(jnp.logical_not(whole) & (last > first))
  def _():
    total[...] += product(rows_of_group(x), rows_of_group(dy))       # in both: what is not ours may be NaN

  @pl.when((visit == count[0] - 1) | (mine != group[jnp.minimum(visit + 1, group.shape[0] - 1)]))
  def _():
    out[...] = total[...].astype(out.dtype)


def candidates(rows, inner, outer, experts, itemsize):
  """Returns vmem.Tiles that fit vector memory; the first should be fastest, from sizes alone.

  The least sum over steps of three times. A step multiplies or loads the blocks of the next step, whichever
  takes longer; it writes the sums of the groups; and it starts. Tiles of several groups are multiplied once
  for each group. An odd number of tiles along N leaves one of two cores waiting.

  >>> candidates(8192, 4096, 14336, 8, 2)[0], candidates(131072, 2048, 1024, 64, 2)[0]
  (Tiles(m=512, k=1024, n=1024), Tiles(m=512, k=1024, n=512))
  """
  return vmem.tilings(inner, outer, lambda tiles: _bytes(tiles, itemsize),
                      lambda tiles: _cost(tiles, rows, inner, outer, experts, itemsize))


def _cost(tiles, rows, inner, outer, experts, itemsize):
  m, k, n = tiles
  visits = pl.cdiv(rows, m) + experts - 1
  inners, outers = pl.cdiv(inner, k), pl.cdiv(outer, n)
  time = vmem.FLOPS_PER_BYTE * itemsize
  product = 2 * m * k * n * (vmem.PASSES if itemsize == 4 else 1) * (1 + 128 / m)
  passing = visits * (max(product, time * m * (k + n)) + vmem.STEP) + experts * time * k * n
  return passing * inners * pl.cdiv(outers, 2) * 2


def _bytes(tiles, itemsize):
  """Bytes of blocks twice, as one is loaded while one is multiplied; of sums in float32; of room to multiply.

  The room is what compilers for v5e and v6e were seen to take. In bfloat16 it is four thirds of the operands,
  because an operand is transposed; in float32, of which parts are made, up to three times the operands.
  """
  m, k, n = tiles
  left, right, out = (vmem.size(shape, itemsize) for shape in ((m, k), (m, n), (k, n)))
  room = 3 * (left + right) if itemsize == 4 else 4 * (left + right) // 3
  return 2 * (left + right + out) + room + vmem.size((k, n), 4)
