"""Normalisation of the width D: root mean square, and with mean and bias."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes


class RMSNorm(nnx.Module):
  """Scales x to unit mean square, then by a learned vector (T5; arXiv:1910.07467).

  No mean is subtracted and there is no bias. The statistics are float32 whatever the
  dtype of x; the result is cast to that dtype before the learned scale is applied.

  Args:
    d_model: D; axis: its logical name, 'kv' of the numbers of one head.
  """

  def __init__(self, d_model: int, *, epsilon=1e-6, axis='embed', rngs):
    self.scale = axes.param(nnx.initializers.ones, (d_model,), axis, rngs=rngs)
    self.epsilon = epsilon

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns x / rms(x) * scale for x [...,D]."""
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
    return (x32 * inverse).astype(x.dtype) * self.scale[...].astype(x.dtype)


class LayerNorm(nnx.Module):
  """Scales x to zero mean and unit variance, then by a learned vector, and adds another (arXiv:1607.06450).

  The variance is that of the population. Statistics and dtypes are as in `RMSNorm`.
  """

  def __init__(self, d_model: int, *, epsilon=1e-5, rngs):
    self.scale = axes.param(nnx.initializers.ones, (d_model,), 'embed', rngs=rngs)
    self.bias = axes.param(nnx.initializers.zeros, (d_model,), 'embed', rngs=rngs)
    self.epsilon = epsilon

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns (x - mean) / sqrt(var + epsilon) * scale + bias for x [...,D]."""
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + self.epsilon)
    y = (centred * inverse).astype(x.dtype) * self.scale[...].astype(x.dtype)
    return y + self.bias[...].astype(x.dtype)


class Standardized(nnx.Module):
  """Scales x to zero mean and unit variance, as `LayerNorm` does, without learned vectors."""

  def __init__(self, d_model: int, *, epsilon=1e-6, rngs):
    del d_model, rngs
    self.epsilon = epsilon

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns (x - mean) / sqrt(var + epsilon) for x [...,D]."""
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + self.epsilon)
    return (centred * inverse).astype(x.dtype)


# What a configuration calls the norms of a model.
KINDS = dict(rms=RMSNorm, layer=LayerNorm)
