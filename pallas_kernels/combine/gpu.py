"""Gather and sum on NVIDIA GPUs, by Triton: a program collects some columns of a few tokens.

Every token reads its own rows and adds them in the order of its choices. So nothing is added in memory
and results are the same in every run, as in SonicMoE (Guo et al., 2025, arXiv:2512.14080).
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import triton

# Never measured: eight columns of two tokens for each of 128 threads, which load 16 bytes at a time.
WIDE, ENTRIES = 1024, 2048


def combine(rows, at, weight=None):
  """Returns [T,D] of rows [M,D], at i32[T,k] and weight f32[T,k] or None; see `combine.api`."""
  return _combine(rows, at, weight)


def _combine(rows, at, weight, interpret=False):
  tokens, width = at.shape[0], rows.shape[1]
  wide = triton.power(width, WIDE)
  tall = ENTRIES // wide
  call = pl.pallas_call(
      functools.partial(_kernel, tall=tall, wide=wide),
      out_shape=jax.ShapeDtypeStruct((tokens, width), rows.dtype),
      grid=(pl.cdiv(tokens, tall), pl.cdiv(width, wide)),
      compiler_params=triton.params(warps=4, stages=1), interpret=interpret, name='combine')
  return call(rows, at, *(() if weight is None else (weight,)))


def _kernel(rows, at, *refs, tall, wide):
  *weight, out = refs
  tokens, width = out.shape
  token = pl.program_id(0) * tall + jnp.arange(tall)
  col = pl.program_id(1) * wide + jnp.arange(wide)
  inside = col < width if width % wide else None
  real = token < tokens if tokens % tall else None
  acc = jnp.zeros((tall, wide), jnp.float32)
  for j in range(at.shape[1]):
    row = triton.load(at.at[token, j], real)                         # [tall]
    chosen = row >= 0 if real is None else real & (row >= 0)
    tile = triton.load(rows.at[row[:, None], col[None]], triton.mask(chosen, inside)).astype(jnp.float32)
    acc += tile * triton.load(weight[0].at[token, j], chosen)[:, None] if weight else tile
  triton.store(out.at[token[:, None], col[None]], acc, triton.mask(real, inside))
