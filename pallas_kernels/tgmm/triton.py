"""The transpose of grouped matmul on NVIDIA GPUs, by Triton: a program for each tile of each matrix.

A program adds up the outer products of its expert's rows, in steps of m rows. Only the last step can
reach into another expert's rows, so only that step is masked. No two programs write the same tile. So results
do not depend on their order, and an expert without rows writes the zeros that it began with. Rows of either
side may be loaded through an index list, as in ScatterMoE (Tan et al., 2024, arXiv:2403.08245) and SonicMoE
(Guo et al., 2025, arXiv:2512.14080).

Where nearly all rows are of a few experts whose matrices have few tiles, most multiprocessors idle. Then rows
would have to be cut too, into parts whose sums are stored in float32 and added by a second kernel.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import listing
from pallas_kernels import triton
from pallas_kernels import tuning


def default_tiles(rows, inner, outer, experts, itemsize):
  """Returns the triton.Tiles for matrices [inner,outer] of `experts`, out of `rows`.

  64 x 256 x 128 was the fastest of 16 on both products of Mixtral and OLMoE (H100, `tgmm.bench --tune`).
  Other tiles were not measured. The step m is short where experts have few rows.

  >>> default_tiles(8192, 4096, 14336, 8, 2)
  Tiles(m=64, n=256, k=128, warps=8, stages=4, band=8)
  """
  mean = -(-rows // experts)
  m, k = triton.power(mean, 128 // itemsize), triton.power(inner, 128)
  warps = 8 if k == 128 else 4
  if itemsize == 2 and m == 64 and k == 128 and (outer % 256 == 0 or outer > 4096):
    return triton.Tiles(m, 256, k, warps, stages=4)
  return triton.Tiles(m, triton.power(outer, 128), k, warps, stages=3)


def candidates(rows, inner, outer, experts, itemsize):
  """Returns triton.Tiles to time, `default_tiles` first, or what of these fits the GPU."""
  guess = default_tiles(rows, inner, outer, experts, itemsize)
  return triton.around(guess, loaded, lambda t: t.k * t.n, itemsize)


def loaded(t):
  """Returns how many entries a step loads: of x [m,k] and of dy [m,n]."""
  return (t.k + t.n) * t.m


def tgmm(x, dy, sizes, token=None, dy_token=None, *, tiles=None):
  """Returns [E,K,N], out[e] = x[rows of e]^T @ dy[rows of e]; see `pallas_kernels.tgmm.api`.

  Args:
    x: [M,K] rows, or with `token` [T,K].
    dy: [M,N] rows, or with `dy_token` [T,N].
    sizes: i32[E].
    token: None, or i32[M], in range: row r is x[token[r]], which is never stored.
    dy_token: the same for dy.
    tiles: triton.Tiles; None: see `tuning.choose`.
  """
  return _tgmm(x, dy, sizes, token, dy_token, tiles)


def _tgmm(x, dy, sizes, token, dy_token, tiles, interpret=False):
  k, n, experts = x.shape[1], dy.shape[1], sizes.shape[0]
  rows = listing.rows(x, token)
  t = tiles or tuning.choose('tgmm_triton', (rows, k, n, experts), x.dtype, candidates)
  end = jnp.cumsum(sizes, dtype=jnp.int32)
  bounds = jnp.stack([end - sizes, end])                             # i32[2, E]
  gathered = token is not None, dy_token is not None
  # A list is loaded a step before its rows, and Triton then shares its stages out between list and rows.
  stages = 2 * t.stages - 1 if any(gathered) else t.stages
  call = pl.pallas_call(
      functools.partial(_kernel, t=t, gathered=gathered, interpret=interpret),
      out_shape=jax.ShapeDtypeStruct((experts, k, n), x.dtype),
      grid=(experts * pl.cdiv(k, t.k) * pl.cdiv(n, t.n),),
      compiler_params=triton.params(t.warps, stages), interpret=interpret, name='tgmm')
  return call(bounds, x, dy, *(table for table in (token, dy_token) if table is not None))


def _kernel(bounds, x, dy, *refs, t, gathered, interpret):
  *tables, out = refs
  tables = [tables.pop(0) if listed else None for listed in gathered]
  _, k, n = out.shape
  tall, wide = pl.cdiv(k, t.k), pl.cdiv(n, t.n)
  expert = pl.program_id(0) // (tall * wide)
  i, j = triton.snake(pl.program_id(0) % (tall * wide), tall, wide, t.band)
  start, end = bounds[0, expert], bounds[1, expert]
  at = [i * t.k + jnp.arange(t.k), j * t.n + jnp.arange(t.n)]
  inside_sides = [at[0] < k if k % t.k else None, at[1] < n if n % t.n else None]

  def add(step, acc, last=False):
    row = start + step * t.m + jnp.arange(t.m)
    mine = row < end if last else None
    a, b = (_rows(ref, table, row, mine, cols, inside)
            for ref, table, cols, inside in zip((x, dy), tables, at, inside_sides))
    return acc + triton.dot(a, b, over=(0, 0), interpret=interpret)

  whole = (end - start) // t.m
  acc = jax.lax.fori_loop(0, whole, add, jnp.zeros((t.k, t.n), jnp.float32))
  acc = jax.lax.fori_loop(whole, (end - start + t.m - 1) // t.m, functools.partial(add, last=True), acc)
  triton.store(out.at[expert, at[0][:, None], at[1][None]], acc, triton.mask(*inside_sides))


def _rows(ref, table, row, mine, cols, inside):
  """[m,.]: columns of rows, which `table` may list, zero in rows of other experts and outside the arrays."""
  if table is not None:
    row = triton.load(table.at[row], mine)
  return triton.load(ref.at[row[:, None], cols[None]], triton.mask(mine, inside))
