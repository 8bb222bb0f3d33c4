"""T5's relative position bias: one table per stack, shared by its layers (arXiv:1910.10683, sec. 2.1)."""

import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import axes


def bucket(relative: jax.Array, num_buckets: int = 32, max_distance: int = 128,
           bidirectional: bool = True) -> jax.Array:
  """Returns the i32 bucket of each relative position (key position minus query position).

  Half of the buckets are exact distances. The rest widen logarithmically up to
  `max_distance`, beyond which all distances share the last bucket. Bidirectional tables keep one half
  of the buckets for keys after the query; unidirectional tables put all such keys in bucket 0.

  >>> [int(b) for b in bucket(jnp.array([0, -1, 1, -500]), bidirectional=False)]
  [0, 1, 0, 31]
  """
  distance: jax.Array = -relative
  offset: jax.Array | int = 0
  if bidirectional:
    num_buckets //= 2
    offset = jnp.where(relative > 0, num_buckets, 0)
    distance = jnp.abs(distance)
  distance = jnp.maximum(distance, 0)
  exact = num_buckets // 2
  # float32 and truncation, as in the reference: 64-bit logarithms move some borders.
  ratio = jnp.log(distance.astype(jnp.float32) / exact + np.finfo(np.float32).eps)
  wide = exact + (ratio / math.log(max_distance / exact) * (num_buckets - exact)).astype(jnp.int32)
  wide = jnp.minimum(wide, num_buckets - 1)
  return (offset + jnp.where(distance < exact, distance, wide)).astype(jnp.int32)


class RelativeBias(nnx.Module):
  """A learned number per head and bucket, added to the attention logits."""

  def __init__(self, num_heads: int, *, num_buckets=32, max_distance=128, bidirectional=True, init_scale=1.0,
               rngs):
    init = nnx.initializers.variance_scaling(init_scale, 'fan_avg', 'uniform')
    self.table = axes.param(init, (num_heads, num_buckets), 'heads', 'relpos_buckets', rngs=rngs)
    self.max_distance = max_distance
    self.bidirectional = bidirectional

  def __call__(self, num_queries: int, num_keys: int, first: int | jax.Array = 0) -> jax.Array:
    """Returns f32[1,H,T,K] for queries at first, first + 1, ... and keys at 0, 1, ...

    Positions in the row serve packed rows, too: within a sequence only differences count,
    and pairs of different sequences are masked.
    """
    relative = jnp.arange(num_keys)[None, :] - (first + jnp.arange(num_queries))[:, None]
    index = bucket(relative, self.table.shape[1], self.max_distance, self.bidirectional)
    return self.table[...][:, index][None]                           # [1, H, T, K]
