"""Gather and sum on TPUs: every row of a choice is copied by itself, while the rows before it are added up.

XLA gathers rows [T*k,D] into memory and reads them again to add them; here rows go no further than vector
memory. Chunks of tokens take turns in two buffers: one chunk is copied while the other chunk is summed.

Rows of bfloat16 lie in pairs, one in the lower, the other in the upper halves of the same words. A single row
cannot be copied alone. So the pair is copied, and the half taken that is asked for. A row is thus read twice
as wide, which still moves less than writing and reading it again would.
"""

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from pallas_kernels import vmem

BUFFERS = 6 * 2**20                     # bytes for rows under way: some microseconds of memory traffic
BLOCK = 2 * 2**20                       # bytes of a block of the result


def combine(rows, at, weight=None, *, interpret=False):
  """Returns [T,D], y[t] = sum_j weight[t,j] * rows[at[t,j]]; see `api.combine`.

  Args:
    rows: [M,D], in float32 or bfloat16.
    at: i32[T,k], -1 for none.
    weight: f32[T,k] or None.
    interpret: False, True, or pltpu.InterpretParams: run on a CPU, for tests.
  """
  (number, width), (tokens, k) = rows.shape, at.shape
  packing = 4 // rows.dtype.itemsize
  padding = ((0, -number % packing), (0, -width % 128))              # copies whole words, in whole tiles
  if any(after for _, after in padding):
    rows = jnp.pad(rows, padding)
  columns, chunk, block = sizes(tokens, k, rows.shape[1], rows.dtype.itemsize)
  per_token = pl.BlockSpec((block, k), lambda t, d: (t, 0))
  call = pl.pallas_call(
      lambda *refs: _kernel(*refs, tokens=tokens, number=number, columns=columns, chunk=chunk),
      out_shape=jax.ShapeDtypeStruct((tokens, width), rows.dtype),
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=0, grid=(pl.cdiv(tokens, block), rows.shape[1] // columns),
          in_specs=[pl.BlockSpec((k, block), lambda t, d: (0, t), memory_space=pltpu.SMEM),
                    pl.BlockSpec(memory_space=pltpu.HBM), per_token, per_token],
          out_specs=pl.BlockSpec((block, columns), lambda t, d: (t, d)),
          scratch_shapes=[pltpu.VMEM((2, k, chunk, columns), _word(rows.dtype)),
                          pltpu.SemaphoreType.DMA((2,))]),
      compiler_params=pltpu.CompilerParams(
          dimension_semantics=('parallel', 'parallel'),
          vmem_limit_bytes=vmem.limit(2 * k * vmem.size((chunk, columns), 4)
                                      + 2 * vmem.size((block, columns), rows.dtype.itemsize)
                                      + 4 * vmem.size((block, k), 4) + 4 * vmem.size((chunk, columns), 4))),
      cost_estimate=pl.CostEstimate(
          flops=2 * tokens * k * width, transcendentals=0,
          bytes_accessed=4 * tokens * k * width + tokens * width * rows.dtype.itemsize + 12 * tokens * k),
      interpret=interpret, name='combine')
  weight = jnp.ones(at.shape, jnp.float32) if weight is None else weight
  with jax.enable_x64(False):                                        # kernels know integers of 32 bits
    return call(at.T, rows, at, weight)


def sizes(tokens, k, width, itemsize):
  """Returns (columns, tokens of a chunk, tokens of a block) that are worked on together.

  Columns divide the width, a multiple of 128, so that no copy reaches beyond the width. They are the most of
  which k rows of 16 tokens fit, as many as a packed tile of bfloat16 holds.

  >>> sizes(16384, 8, 2048, 2), sizes(4096, 2, 4096, 2), sizes(10, 64, 8192, 4)
  ((2048, 32, 512), (4096, 64, 256), (512, 16, 128))
  """
  columns = max(c for c in range(128, width + 1, 128)
                if width % c == 0 and (c == 128 or 2 * k * 16 * c * 4 <= BUFFERS))
  chunk = max(c for c in (16, 32, 64, 128) if c == 16 or 2 * k * c * columns * 4 <= BUFFERS)
  block = max(b for b in (128, 256, 512) if b == 128 or b < 2 * tokens and b * columns * itemsize <= BLOCK)
  return columns, chunk, block


def _kernel(index, rows, at, weight, out, buffers, arrived, *, tokens, number, columns, chunk):
  """Sums the rows of a block of tokens, chunk by chunk."""
  first, column = pl.program_id(0) * out.shape[0], pl.program_id(1) * columns
  chunks = pl.cdiv(jnp.minimum(out.shape[0], tokens - first), chunk)
  k, packed = at.shape[1], rows.dtype == jnp.bfloat16
  words = rows.bitcast(jnp.uint32) if packed else rows

  def start(i):
    def token(t, _):
      for j in range(k):
        row = jnp.clip(index[j, i * chunk + t], 0, number - 1)       # tokens beyond the last hold anything
        row = jax.lax.shift_right_logical(row, 1) if packed else row
        pltpu.make_async_copy(words.at[pl.ds(row, 1), pl.ds(column, columns)],
                              buffers.at[i & 1, j, pl.ds(t, 1)], arrived.at[i & 1]).start()
    jax.lax.fori_loop(0, chunk, token, None)

  def step(i, _):
    @pl.when(i + 1 < chunks)
    def _():
      start(i + 1)
    buffer = buffers.at[i & 1]
    pltpu.make_async_copy(buffer, buffer, arrived.at[i & 1]).wait()  # for as many bytes as all its rows have
    mine = pl.ds(pl.multiple_of(i * chunk, chunk), chunk)
    total = jnp.zeros((chunk, columns), jnp.float32)
    for j in range(k):
      place = at[mine, j:j + 1]                                      # [chunk, 1]
      row = _half(buffer[j], place) if packed else buffer[j]
      total += jnp.where(place >= 0, row * weight[mine, j:j + 1], 0)
    out[mine] = total.astype(out.dtype)

  start(0)
  jax.lax.fori_loop(0, chunks, step, None)


def _half(words, place):
  """The float32 values of that row of pairs, u32 words [chunk,columns], which `place` i32[chunk,1] names."""
  upper = jnp.where((place & 1) == 1, words, words << 16)
  return jax.lax.bitcast_convert_type(upper & jnp.uint32(0xFFFF0000), jnp.float32)


def _word(dtype):
  return jnp.uint32 if dtype == jnp.bfloat16 else dtype
