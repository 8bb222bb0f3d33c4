"""Softmax, the k best experts and the counts on CPUs: XLA's own operations."""

import jax
import jax.numpy as jnp


def route(logits, k):
  """Returns (weight, expert, counts); see `api.route`."""
  weight, expert = jax.lax.top_k(jax.nn.softmax(logits.astype(jnp.float32), axis=-1), k)    # [T, k] twice
  counts = (expert[..., None] == jnp.arange(logits.shape[-1])).sum((0, 1), dtype=jnp.int32)  # [E]
  return weight, expert.astype(jnp.int32), counts
