"""Token embedding and output heads."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe.parts import linear


class Embed(nnx.Module):
  """A table [V,D] of token vectors, N(0, 1).

  Args:
    vocab_size, d_model: V and D.
    factor: of the vectors of ids (arXiv:1706.03762, section 3.4: sqrt(D)), not of the tied head's.
  """

  def __init__(self, vocab_size: int, d_model: int, *, factor=1.0, rngs):
    self.table = axes.param(nnx.initializers.normal(1.0), (vocab_size, d_model), 'vocab', 'embed', rngs=rngs)
    self.factor = factor

  @jax.named_scope('embed')
  def __call__(self, ids: jax.Array, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
    """Returns the vectors [B,T,D] of ids i32[B,T], in `dtype`."""
    x = jnp.take(self.table[...], ids, axis=0).astype(dtype)         # [B, T, D]
    return x if self.factor == 1 else x * self.factor

  def logits(self, x: jax.Array, scaled: bool = True, b: linear.Array | None = None) -> jax.Array:
    """Returns the tied head's f32[B,T,V]: x E^T / sqrt(D) (T5 1.0, Mesh TensorFlow), or x E^T; plus b [V].

    The division keeps the logits of a table of unit variance near unit variance.
    """
    table = self.table[...]
    y = linear.logits(x, table.T)                                    # [B, T, V]
    y = y * (table.shape[1] ** -0.5 if scaled else 1.0)
    return y if b is None else y + b[...]


class Head(nnx.Module):
  """An untied output projection [D,V] (T5 1.1); with `use_bias` a bias [V], initially 0."""

  def __init__(self, d_model: int, vocab_size: int, *, init_scale=1.0, use_bias=False, rngs):
    init = nnx.initializers.variance_scaling(init_scale, 'fan_in', 'truncated_normal')
    self.w = axes.param(init, (d_model, vocab_size), 'embed', 'vocab', rngs=rngs)
    self.b = axes.param(nnx.initializers.zeros, (vocab_size,), 'vocab', rngs=rngs) if use_bias else None

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns logits f32[B,T,V] of x [B,T,D], see `linear.logits`."""
    return linear.logits(x, self.w, self.b)
