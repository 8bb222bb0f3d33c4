"""Activation functions by name, of `jax.nn` and others; the product of gated networks."""

import typing

import jax
import jax.numpy as jnp


def relu2(x: jax.Array) -> jax.Array:
  """Returns max(x, 0)^2 of any array, elementwise (Primer, arXiv:2109.08668).

  >>> relu2(jnp.array([-2.0, 3.0])).tolist()
  [0.0, 9.0]
  """
  return jnp.square(jax.nn.relu(x))


def gelu_exact(x: jax.Array) -> jax.Array:
  """Returns x Phi(x) of any array, elementwise, by the error function; 'gelu' is its tanh approximation.

  >>> round(float(gelu_exact(jnp.float32(1.0))), 4)
  0.8413
  """
  return jax.nn.gelu(x, approximate=False)


OWN = {'relu2': relu2, 'gelu_exact': gelu_exact}


def named(name: str) -> typing.Callable[[jax.Array], jax.Array]:
  """Returns the elementwise function called `name`, one of `ranges.Activation`.

  >>> named('relu2') is relu2, named('relu') is jax.nn.relu
  (True, True)
  """
  return OWN.get(name) or getattr(jax.nn, name)


def gated(x: jax.Array, gate: jax.Array, activation: typing.Callable[[jax.Array], jax.Array],
          limit: float | None = None, slope: float = 1.0, offset: float = 0.0) -> jax.Array:
  """Returns act(s x) / s * (gate + o) of arrays [...,F]; with a limit L of min(x, L) and clip(gate, -L, L).

  The limit is that of DeepSeek-V4 (L = 10): no product of two large numbers comes out of an expert. The
  slope s makes 'silu' the function x sigmoid(s x) (Swish, arXiv:1710.05941). gpt-oss has L = 7, s = 1.702,
  with which Swish is nearly GELU, and the offset o = 1.

  >>> gated(jnp.array([2.0, 2.0]), jnp.array([3.0, -3.0]), jax.nn.relu).tolist()
  [6.0, -6.0]
  >>> gated(jnp.array([2.0, 0.5]), jnp.array([3.0, -3.0]), jax.nn.relu, limit=1.0).tolist()
  [1.0, -0.5]
  >>> gated(jnp.array([2.0, 2.0]), jnp.array([3.0, -3.0]), relu2, slope=2.0, offset=1.0).tolist()
  [32.0, -16.0]
  """
  if limit is not None:
    x, gate = jnp.minimum(x, limit), jnp.clip(gate, -limit, limit)
  h = activation(x) if slope == 1 else activation(slope * x) / slope
  return h * (gate if offset == 0 else gate + offset)
