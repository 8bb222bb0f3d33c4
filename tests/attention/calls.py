"""Calls of one attention layer by itself."""

import jax.numpy as jnp

from stmoe.core import contract


def context(batch, length, **fields):
  """Returns the Context of [batch,length] real tokens."""
  ones = jnp.ones((batch, length), jnp.int32)
  fields = dict(mask=ones > 0, ids=ones, positions=jnp.cumsum(ones, axis=1) - 1, segments=ones,
                step=jnp.int32(0), tokens=jnp.float32(ones.size)) | fields
  return contract.Context(**fields)


def call(layer, x, seen, key=None):
  """Returns y [B,T,D] of an attention `layer` for x [B,T,D] that sees `seen`; a `key` is for training."""
  return layer(x, context(*x.shape[:2], visible=seen, key=key, train=key is not None), {})[0]
