"""Grouped matmul on NVIDIA GPUs, by Triton: every tile of rows belongs to one expert.

An expert's rows are cut into tiles from its own first row. So no tile has two experts, and nothing is padded
in memory. The last tile of an expert computes some rows in vain, which are not stored. How many tiles
there are depends on the sizes; the grid has room for the worst case, and programs beyond the tiles exit at
once. The tables of tiles, order of tiles and loads through an index list follow ScatterMoE (Tan et al., 2024,
arXiv:2403.08245) and MegaBlocks (Gale et al., 2022, arXiv:2211.15841).
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import groups
from pallas_kernels import listing
from pallas_kernels import triton
from pallas_kernels import tuning


def default_tiles(rows, inner, outer, experts, itemsize):
  """Returns the triton.Tiles for `rows` [M,inner] and matrices [inner,outer] of `experts`.

  128 x 256 x 64 was the fastest of 16 on both products of Mixtral and OLMoE (H100, `gmm.bench --tune`). Where
  columns would be left over or sums are short it is 128 x 128, as in ScatterMoE. These tiles and lower tiles,
  for experts with few rows, were not measured. None spills registers (see the tests that compile them).

  >>> default_tiles(8192, 4096, 14336, 8, 2)
  Tiles(m=128, n=256, k=64, warps=8, stages=4, band=8)
  """
  mean = -(-rows // experts)
  m = 128 if mean > 64 else 64 if mean > 16 else 16
  warps = 8 if m == 128 else 4
  if itemsize == 4:
    return triton.Tiles(m, triton.power(outer, 128), triton.power(inner, 32), warps, stages=3)
  if m == 128 and inner >= 1024 and (outer % 256 == 0 or outer > 4096):
    return triton.Tiles(m, 256, 64, warps, stages=4)
  return triton.Tiles(m, triton.power(outer, 128), triton.power(inner, 64), warps, stages=4 if m == 16 else 3)


def candidates(rows, inner, outer, experts, itemsize):
  """Returns triton.Tiles to time, `default_tiles` first, or what of these fits the GPU."""
  guess = default_tiles(rows, inner, outer, experts, itemsize)
  return triton.around(guess, loaded, lambda t: t.m * t.n, itemsize)


def loaded(t):
  """Returns how many entries a step loads: of x [m,k] and of w [k,n]."""
  return (t.m + t.n) * t.k


def gmm(x, w, sizes, token=None, *, transposed=False, tiles=None):
  """Returns [M,N], out[r] = x[r] @ w[e(r)]; see `pallas_kernels.gmm.api`.

  Args:
    x: [M,K] rows, or with `token` [T,K].
    w: [E,K,N], or [E,N,K] if `transposed`.
    sizes: i32[E].
    token: None, or i32[M], in range: row r of the product is made of x[token[r]], which is never stored.
    tiles: triton.Tiles; None: see `tuning.choose`.
  """
  return _gmm(x, w, sizes, token, transposed, tiles)


def _gmm(x, w, sizes, token, transposed, tiles, interpret=False):
  rows = listing.rows(x, token)
  experts, k = w.shape[0], x.shape[1]
  n = w.shape[1 if transposed else 2]
  name = 'gmm_transposed_triton' if transposed else 'gmm_triton'
  t = tiles or tuning.choose(name, (rows, k, n, experts), x.dtype, candidates)
  table = _table(sizes, rows, t.m)                                   # i32[3, tiles of rows]
  call = pl.pallas_call(
      functools.partial(_kernel, t=t, n=n, transposed=transposed, interpret=interpret),
      out_shape=jax.ShapeDtypeStruct((rows, n), x.dtype), grid=(table.shape[1] * pl.cdiv(n, t.n),),
      compiler_params=triton.params(t.warps, t.stages), interpret=interpret, name='gmm')
  return call(table, x, w, *(() if token is None else (token,)))


def _table(sizes, rows, m):
  """i32[3,tiles]: expert, first row and end of the rows of each tile; no rows in spare tiles."""
  tiles = groups.tiles(sizes, rows, m)
  return jnp.stack([tiles.group, tiles.first, tiles.end])


def _kernel(table, x, w, *refs, t, n, transposed, interpret):
  *token, out = refs
  tile, column = triton.snake(pl.program_id(0), table.shape[1], pl.cdiv(n, t.n), t.band)
  expert, first, end = table[0, tile], table[1, tile], table[2, tile]

  @pl.when(first < end)
  def _():
    acc = _product(x, w, token, expert, first, end, column * t.n, t, n, transposed, interpret)
    row = first + jnp.arange(t.m)
    col = column * t.n + jnp.arange(t.n)
    mine = triton.mask(row < end, col < n if n % t.n else None)
    triton.store(out.at[row[:, None], col[None]], acc, mine)


def _product(x, w, token, expert, first, end, column, t, n, transposed, interpret):
  """f32[m,n]: rows [first,first+m) of x times columns [column,column+n) of the expert's matrix.

  Rows after `end` are loaded as the last row, which is at hand: their results are not stored.
  """
  k = x.shape[1]
  row = jnp.minimum(first + jnp.arange(t.m), end - 1)
  row = triton.load(token[0].at[row]) if token else row
  col = column + jnp.arange(t.n)

  def add(start, acc, last=False):
    at = start + jnp.arange(t.k)
    inside = at < k if last else None
    a = triton.load(x.at[row[:, None], at[None]], triton.mask(None, inside))
    wide = col < n if n % t.n else None
    if transposed:
      b = triton.load(w.at[expert, col[:, None], at[None]], triton.mask(wide, inside))
    else:
      b = triton.load(w.at[expert, at[:, None], col[None]], triton.mask(inside, wide))
    return acc + triton.dot(a, b, over=(1, 1 if transposed else 0), interpret=interpret)

  acc = jax.lax.fori_loop(0, k // t.k, lambda i, acc: add(i * t.k, acc), jnp.zeros((t.m, t.n), jnp.float32))
  return add(k // t.k * t.k, acc, last=True) if k % t.k else acc
