"""The product of gated networks, with and without limits."""

import typing

import jax
import jax.numpy as jnp


def product(x: jax.Array, gate: jax.Array, activation: typing.Callable[[jax.Array], jax.Array],
            limit: float | None = None) -> jax.Array:
  """Returns act(x) * gate of arrays [...,F]; with a limit L act(min(x, L)) * clip(gate, -L, L).

  The limit is that of DeepSeek-V4 (L = 10): no product of two large numbers comes out of an expert.

  >>> product(jnp.array([2.0, 2.0]), jnp.array([3.0, -3.0]), jax.nn.relu).tolist()
  [6.0, -6.0]
  >>> product(jnp.array([2.0, 0.5]), jnp.array([3.0, -3.0]), jax.nn.relu, limit=1.0).tolist()
  [1.0, -0.5]
  """
  if limit is not None:
    x, gate = jnp.minimum(x, limit), jnp.clip(gate, -limit, limit)
  return activation(x) * gate
