"""Trajectories of many environments: a few that lie near each other train together (MixER)."""

import math
import typing

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import ranges
from stmoe import targets
from stmoe.errors import UserError


class Predicted(struct.PyTreeNode):
  """What a model of trajectories gives for rows of environments.

  values:  f32[B,K,D] of K trajectories of a row.
  choice:  f32[B,K,E], 1 at the expert of a trajectory.
  rank:    i32[B], how near a row's environment is to the one that the row is `around`; see `ranks`.
  context: f32[B,C] of the row's environment.
  """
  values: jax.Array
  choice: jax.Array
  rank: jax.Array
  context: jax.Array


def ranks(contexts: jax.Array, first: jax.Array) -> jax.Array:
  """Returns i32[N], the places of contexts f32[N,C] by their mean absolute distance from context `first` i32[].

  The context itself is at place 0; equally far contexts are in order.

  >>> ranks(jnp.array([[0.], [5.], [1.], [0.]]), jnp.int32(3)).tolist()
  [1, 3, 2, 0]
  """
  away = jnp.mean(jnp.abs(jax.lax.stop_gradient(contexts - contexts[first])), axis=-1)
  away = jnp.where(jnp.arange(len(contexts)) == first, -1.0, away)
  return jnp.argsort(jnp.argsort(away, stable=True), stable=True).astype(jnp.int32)


def together(losses: jax.Array, chosen: jax.Array, number: int, reweighted: bool) -> jax.Array:
  """Returns f32[], the outer loss of the losses f32[B] of environments: of those `chosen` bool[B], `number` many.

  Their mean. If `reweighted`, the sum of softmax(losses) * losses, whose gradient passes the weights, too.

  >>> float(together(jnp.array([1., 3., 9.]), jnp.array([True, True, False]), 2, False))
  2.0
  """
  if not reweighted:
    return jnp.sum(jnp.where(chosen, losses, 0)) / number
  weights = jax.nn.softmax(jnp.where(chosen, losses, -jnp.inf))
  return jnp.sum(jnp.where(chosen, weights * losses, 0))
