"""Distributions over the last axis, where some entries are left out or are as good as 0."""

import jax
import jax.numpy as jnp


def softmax_of(scores: jax.Array, seen: jax.Array) -> jax.Array:
  """Returns f32[...,N], the softmax of scores f32[...,N] over entries that are seen bool[...,N]; 0 of others.

  Where none is seen all are 0, and there is no gradient.

  >>> softmax_of(jnp.zeros((2, 2)), jnp.array([[True, False], [False, False]])).tolist()
  [[1.0, 0.0], [0.0, 0.0]]
  """
  scores = jnp.where(seen, scores, -jnp.inf)
  some = seen.any(axis=-1, keepdims=True)
  return jnp.where(seen, jax.nn.softmax(jnp.where(some, scores, 0), axis=-1), 0)


def logarithm(probs: jax.Array) -> jax.Array:
  """Returns the logits f32[...] whose softmax is probs f32[...]; not below that of the least float.

  >>> round(float(logarithm(jnp.array(1.0)))), round(float(logarithm(jnp.array(0.0))))
  (0, -87)
  """
  return jnp.log(jnp.maximum(probs, jnp.finfo(jnp.float32).tiny))
