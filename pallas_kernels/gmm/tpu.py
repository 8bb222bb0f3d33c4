"""Grouped matmul on TPUs: a grid over the tiles that groups have rows in, as long as the rows at hand.

The scheme of megablox (jax/experimental/pallas/ops/tpu/megablox in JAX). Which group and which tile of rows
a step works on is computed ahead and prefetched as scalars. So index maps can fetch the matrix of the
group. A tile that several groups share is visited once for each group, in a row. Its block of the
result stays in vector memory meanwhile, and every visit writes the rows of its own group.
"""

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from pallas_kernels import groups
from pallas_kernels import listing
from pallas_kernels import tuning
from pallas_kernels import vmem


def gmm(x, w, sizes, token=None, *, transposed=False, tiles=None, interpret=False):
  """Returns [M,N], out[r] = x[r] @ w[e(r)]; see `api.gmm`.

  Products of bfloat16 are exact in the float32 that they are added in. float32 is multiplied in full
  precision, not in one pass of bfloat16.

  Args:
    x: [M,K], or with `token` [T,K].
    w: [E,K,N], with `transposed` [E,N,K].
    sizes: i32[E].
    token: None, or i32[M]: rows x[token] are gathered first.
    transposed: whether the last axis of w is summed over.
    tiles: vmem.Tiles, of x [m,k] and w [k,n]; None: see `tuning.choose`.
    interpret: False, True, or pltpu.InterpretParams: run on a CPU, for tests.
  """
  x = listing.take(x, token)                                         # [M, K]
  if transposed and w.shape[1] == 1 and x.dtype.itemsize < 4:        # Mosaic lowers no such product, jax 0.10
    return gmm(x, jnp.pad(w, ((0, 0), (0, 1), (0, 0))), sizes, transposed=True, tiles=tiles,
               interpret=interpret)[:, :1]
  (rows, inner), outer = x.shape, w.shape[1 if transposed else 2]
  shape, name = (rows, inner, outer, w.shape[0]), 'gmm_transposed' if transposed else 'gmm'
  tiles = tiles or tuning.choose(name, shape, x.dtype, candidates)
  tm, tk, tn = map(min, tiles, (rows, inner, outer))
  steps = pl.cdiv(inner, tk)
  visits = groups.visits(sizes, rows, tm)
  if transposed:
    of_w = pl.BlockSpec((None, tn, tk), lambda n, v, k, group, tile, start: (group[v], n, k))
  else:
    of_w = pl.BlockSpec((None, tk, tn), lambda n, v, k, group, tile, start: (group[v], k, n))
  call = pl.pallas_call(
      lambda *refs: _kernel(*refs, inner=inner, transposed=transposed),
      out_shape=jax.ShapeDtypeStruct((rows, outer), x.dtype),
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=3,
          grid=(pl.cdiv(outer, tn), visits.count, steps),
          in_specs=[pl.BlockSpec((tm, tk), lambda n, v, k, group, tile, start: (tile[v], k)), of_w],
          out_specs=pl.BlockSpec((tm, tn), lambda n, v, k, group, tile, start: (tile[v], n)),
          scratch_shapes=[pltpu.VMEM((tm, tn), jnp.float32)] if steps > 1 else []),
      compiler_params=pltpu.CompilerParams(
          dimension_semantics=('parallel', 'arbitrary', 'arbitrary'),
          vmem_limit_bytes=vmem.limit(_bytes(vmem.Tiles(tm, tk, tn), steps, x.dtype.itemsize))),
      cost_estimate=pl.CostEstimate(
          flops=2 * rows * inner * outer, transcendentals=0,
          bytes_accessed=(x.size * pl.cdiv(outer, tn) + w.size + rows * outer) * x.dtype.itemsize),
      interpret=interpret, name=name)
  return call(visits.group, visits.tile, visits.start, x, w)


def _kernel(group, tile, start, x, w, out, *sum_of_steps, inner, transposed):
  """One step: a block of x times a block of w, and after the last block of K the rows of the group."""
  visit, k = pl.program_id(1), pl.program_id(2)
  height, width = x.shape

  def product():
    left, right = x[...], w[...]
    if inner % width:                                                # the last block holds anything beyond K
      left, right = _cut(left, inner - k * width, 1), _cut(right, inner - k * width, int(transposed))
    return jax.lax.dot_general(
        left, right, (((1,), (int(transposed),)), ((), ())), preferred_element_type=jnp.float32,
        precision=vmem.PRECISION[x.dtype.name])

  def store(y):
    row = tile[visit] * height + jax.lax.broadcasted_iota(jnp.int32, y.shape, 0)
    mine = (start[group[visit]] <= row) & (row < start[group[visit] + 1])
    out[...] = jnp.where(mine, y, out[...].astype(jnp.float32)).astype(out.dtype)

  if not sum_of_steps:
    store(product())
    return
  total, last = sum_of_steps[0], pl.num_programs(2) - 1

  @pl.when(k == 0)
  def _():
    total[...] = product()

  @pl.when((k > 0) & (k < last))
  def _():
    total[...] += product()

  @pl.when(k == last)
  def _():
    store(total[...] + product())


def _cut(x, number, axis):
  """Sets everything from index `number` of an axis on to zero; NaN too."""
  return jnp.where(jax.lax.broadcasted_iota(jnp.int32, x.shape, axis) < number, x, 0).astype(x.dtype)


def candidates(rows, inner, outer, experts, itemsize):
  """Returns vmem.Tiles that fit vector memory; the first should be fastest, from sizes alone.

  The order is by the sum over steps of two times. A step multiplies or loads the blocks of the next step,
  whichever takes longer, and it starts. Tiles of several groups are multiplied once for each group. Blocks
  that hold all of K do not load the matrix of a group again for each of its tiles. An odd number of tiles
  along N leaves one of two cores waiting.

  >>> candidates(8192, 4096, 14336, 8, 2)[0], candidates(131072, 2048, 1024, 64, 2)[0]
  (Tiles(m=128, k=4096, n=512), Tiles(m=256, k=2048, n=512))
  """
  return vmem.tilings(inner, outer, lambda tiles: _bytes(tiles, pl.cdiv(inner, tiles.k), itemsize),
                      lambda tiles: _cost(tiles, rows, inner, outer, experts, itemsize))


def _cost(tiles, rows, inner, outer, experts, itemsize):
  m, k, n = tiles
  experts = min(experts, rows)
  visits = pl.cdiv(rows, m) + experts - 1
  inners, outers = pl.cdiv(inner, k), pl.cdiv(outer, n)
  time = vmem.FLOPS_PER_BYTE * itemsize
  product = 2 * m * k * n * (vmem.PASSES if itemsize == 4 else 1)
  of_x, of_w = time * m * (k + n / inners), time * k * n
  if inners == 1:
    passing = experts * max(product, of_x + of_w) + (visits - experts) * max(product, of_x)
  else:
    passing = visits * inners * max(product * (1 + 128 / k), of_x + of_w)
  return (passing + vmem.STEP * visits * inners) * pl.cdiv(outers, 2) * 2


def _bytes(tiles, steps, itemsize):
  """Bytes of blocks twice, as one is loaded while one is multiplied; of sums in float32; of room to multiply.

  The room is what compilers for v5e and v6e were seen to take. In bfloat16 it is a third of the operands; in
  float32, of which parts are made, up to twice the operands.
  """
  m, k, n = tiles
  left, right, out = (vmem.size(shape, itemsize) for shape in ((m, k), (k, n), (m, n)))
  room = 2 * (left + right) if itemsize == 4 else (left + right) // 3
  return 2 * (left + right + out) + room + vmem.size((m, n), 4) * (2 if steps > 1 else 1)
