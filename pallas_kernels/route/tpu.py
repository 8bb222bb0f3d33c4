"""Softmax, the k largest and their counts on TPUs: one reading of the logits, k sweeps over a tile of them.

Every sweep takes the largest probability of each token, the first of equal probabilities, and strikes it out.
A tile counts its own choices, so that tiles may run on two cores; the sum over tiles is left to XLA.
"""

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

TILE = 2**20                            # bytes of a tile of probabilities


def route(logits, k, *, interpret=False):
  """Returns (weight f32[T,k], expert i32[T,k], counts i32[E]) of logits [T,E]; see `api.route`.

  Args:
    logits: [T,E] of any float dtype.
    k: choices per token, 1 <= k <= E.
    interpret: False, True, or pltpu.InterpretParams: run on a CPU, for tests.
  """
  tokens, experts = logits.shape
  height = min(tokens, 1024, max(16, TILE // 4 // pl.cdiv(experts, 128) // 128 // 16 * 16))
  tiles = pl.cdiv(tokens, height)
  per_token = pl.BlockSpec((height, k), lambda t: (t, 0))
  call = pl.pallas_call(
      lambda *refs: _kernel(*refs, tokens=tokens),
      out_shape=(jax.ShapeDtypeStruct((tokens, k), jnp.float32), jax.ShapeDtypeStruct((tokens, k), jnp.int32),
                 jax.ShapeDtypeStruct((tiles, 1, experts), jnp.int32)),
      grid=(tiles,),
      in_specs=[pl.BlockSpec((height, experts), lambda t: (t, 0))],
      out_specs=(per_token, per_token, pl.BlockSpec((None, 1, experts), lambda t: (t, 0, 0))),
      compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel',)),
      cost_estimate=pl.CostEstimate(
          flops=(4 + 5 * k) * tokens * experts, transcendentals=tokens * experts,
          bytes_accessed=logits.size * logits.dtype.itemsize + 8 * tokens * k + 4 * tiles * experts),
      interpret=interpret, name='route')
  with jax.enable_x64(False):                                        # kernels know integers of 32 bits
    weight, expert, counts = call(logits)
  return weight, expert, counts.sum((0, 1), dtype=jnp.int32)


def _kernel(logits, weight, expert, counts, *, tokens):
  """Routes the tokens of a tile."""
  x = logits[...].astype(jnp.float32)                                # [H, E]
  height, number = x.shape
  x = jnp.exp(x - x.max(axis=1, keepdims=True))
  probs = x / x.sum(axis=1, keepdims=True)
  # Indices as floats, which are compared and reduced as fast; exact up to 2^24.
  index = jax.lax.broadcasted_iota(jnp.int32, probs.shape, 1).astype(jnp.float32)
  chosen = jnp.zeros(probs.shape, jnp.float32)
  for j in range(weight.shape[1]):
    best = probs.max(axis=1, keepdims=True)                          # [H, 1]
    first = jnp.where(probs == best, index, number).min(axis=1, keepdims=True)
    weight[:, j:j + 1] = best
    expert[:, j:j + 1] = first.astype(jnp.int32)
    chosen = jnp.where(index == first, 1., chosen)
    probs = jnp.where(index == first, -1, probs)
  row = pl.program_id(0) * height + jax.lax.broadcasted_iota(jnp.int32, chosen.shape, 0)
  counts[...] = jnp.where(row < tokens, chosen, 0).sum(axis=0, keepdims=True).astype(jnp.int32)
