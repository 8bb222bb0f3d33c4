"""Routing on NVIDIA GPUs, by Triton: softmax, the k largest and counts in one pass over the logits.

A program has all experts of some tokens in registers and takes the largest probability k times. Each program
writes counts of its own tokens, which are summed after: Pallas adds atomically in float32 only, also to
integers.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import triton

ENTRIES = 2048                          # probabilities of a program, 16 a thread; never measured


def route(logits, k):
  """Returns (weight f32[T,k], expert i32[T,k], counts i32[E]) of logits [T,E]; see `route.api`."""
  return _route(logits, k)


def _route(logits, k, interpret=False):
  tokens, experts = logits.shape
  wide = triton.power(experts)
  tall = max(ENTRIES // wide, 1)
  programs = pl.cdiv(tokens, tall)
  like = jax.ShapeDtypeStruct
  weight, expert, counts = pl.pallas_call(
      functools.partial(_kernel, tall=tall, wide=wide, k=k),
      out_shape=(like((tokens, k), jnp.float32), like((tokens, k), jnp.int32),
                 like((programs, wide), jnp.int32)),
      grid=(programs,), compiler_params=triton.params(warps=4, stages=1), interpret=interpret,
      name='route')(logits)
  return weight, expert, counts.sum(axis=0, dtype=jnp.int32)[:experts]


def _kernel(logits, weight, expert, counts, *, tall, wide, k):
  tokens, experts = logits.shape
  token, col = pl.program_id(0) * tall + jnp.arange(tall), jnp.arange(wide)
  real = token < tokens if tokens % tall else None
  inside = col < experts if experts % wide else None
  probs = _softmax(triton.load(logits.at[token[:, None], col[None]], triton.mask(real, inside)), inside)

  slot = jnp.arange(triton.power(k))
  best, chosen = jnp.zeros((tall, slot.size), jnp.float32), jnp.zeros((tall, slot.size), jnp.int32)

  def choose(j, carry):
    remaining, best, chosen = carry
    e = jax.lax.argmax(remaining, 1, jnp.int32)                      # [tall] the first of the largest
    best = jnp.where(slot[None] == j, jnp.max(remaining, axis=1)[:, None], best)
    chosen = jnp.where(slot[None] == j, e[:, None], chosen)
    return jnp.where(col[None] == e[:, None], -1, remaining), best, chosen

  remaining, best, chosen = jax.lax.fori_loop(0, k, choose, (probs, best, chosen))
  stored = triton.mask(real, slot < k if k < slot.size else None)
  triton.store(weight.at[token[:, None], slot[None]], best, stored)
  triton.store(expert.at[token[:, None], slot[None]], chosen, stored)
  counted = (remaining < 0) & (probs >= 0)
  counted = counted if real is None else counted & real[:, None]
  triton.store(counts.at[pl.program_id(0), col], jnp.sum(counted, axis=0, dtype=jnp.int32))


def _softmax(logits, inside):
  """f32[tall,wide]: the softmax over experts, -1 in places without an expert."""
  logits = logits.astype(jnp.float32)
  if inside is not None:
    logits = jnp.where(inside[None], logits, -jnp.inf)
  e = jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True))
  probs = e / jnp.sum(e, axis=1, keepdims=True)
  return probs if inside is None else jnp.where(inside[None], probs, -1)
