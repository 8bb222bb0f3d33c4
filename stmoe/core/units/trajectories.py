"""What a model of trajectories gives for environments, and which environments lie near each other."""

from flax import struct
import jax
import jax.numpy as jnp


class Predicted(struct.PyTreeNode):
  """What a model of trajectories gives for rows of environments.

  values:  f32[B,K,D] of K trajectories of a row.
  choice:  f32[B,K,E], the weight of each expert for a trajectory.
  rank:    i32[B], how near a row's environment is to the one that the row is `around`; see `ranks`.
  context: f32[B,C] of the row's environment.
  """
  values: jax.Array
  choice: jax.Array
  rank: jax.Array
  context: jax.Array


def ranks(contexts: jax.Array, first: jax.Array) -> jax.Array:
  """Returns i32[N], the places of contexts f32[N,C] by their distance from context `first` i32[], a mean.

  The context itself is at place 0; equally far contexts are in order.

  >>> ranks(jnp.array([[0.], [5.], [1.], [0.]]), jnp.int32(3)).tolist()
  [1, 3, 2, 0]
  """
  away = jnp.mean(jnp.abs(jax.lax.stop_gradient(contexts - contexts[first])), axis=-1)
  away = jnp.where(jnp.arange(len(contexts)) == first, -1.0, away)
  return jnp.argsort(jnp.argsort(away, stable=True), stable=True).astype(jnp.int32)
