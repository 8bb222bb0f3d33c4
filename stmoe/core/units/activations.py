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


OWN = {'relu2': relu2}


def named(name: str) -> typing.Callable[[jax.Array], jax.Array]:
  """Returns the elementwise function called `name`, one of `ranges.Activation`.

  >>> named('relu2') is relu2, named('relu') is jax.nn.relu
  (True, True)
  """
  return OWN.get(name) or getattr(jax.nn, name)


def gated(x: jax.Array, gate: jax.Array, activation: typing.Callable[[jax.Array], jax.Array],
          limit: float | None = None) -> jax.Array:
  """Returns act(x) * gate of arrays [...,F]; with a limit L act(min(x, L)) * clip(gate, -L, L).

  The limit is that of DeepSeek-V4 (L = 10): no product of two large numbers comes out of an expert.

  >>> gated(jnp.array([2.0, 2.0]), jnp.array([3.0, -3.0]), jax.nn.relu).tolist()
  [6.0, -6.0]
  >>> gated(jnp.array([2.0, 0.5]), jnp.array([3.0, -3.0]), jax.nn.relu, limit=1.0).tolist()
  [1.0, -0.5]
  """
  if limit is not None:
    x, gate = jnp.minimum(x, limit), jnp.clip(gate, -limit, limit)
  return activation(x) * gate
