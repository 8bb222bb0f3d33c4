"""Random perturbations as pure functions of an explicit key."""

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, key: jax.Array | None,
            broadcast_dims: tuple[int, ...] = ()) -> jax.Array:
  """Returns x with entries zeroed with probability `rate` and the rest scaled by 1/(1-rate).

  Args:
    x:    any array.
    rate: in [0, 1).
    key:  PRNG key; None switches dropout off (evaluation).
    broadcast_dims: axes along which one mask is shared.

  >>> sorted(set(dropout(jnp.ones(64), 0.5, jax.random.key(0)).tolist()))
  [0.0, 2.0]
  """
  if key is None or rate == 0.0:
    return x
  shape = [1 if i in {d % x.ndim for d in broadcast_dims} else n for i, n in enumerate(x.shape)]
  keep = jax.random.bernoulli(key, 1.0 - rate, shape)
  return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


def gumbel(key: jax.Array | None, *shape: int) -> jax.Array | None:
  """Returns standard Gumbel noise f32[shape] from `key`, or None without a key (evaluation).

  >>> gumbel(None, 2) is None, gumbel(jax.random.key(0), 2).shape
  (True, (2,))
  """
  return None if key is None else jax.random.gumbel(key, shape)


def jitter(x: jax.Array, epsilon: float, key: jax.Array | None) -> jax.Array:
  """Returns x times U(1-epsilon, 1+epsilon) elementwise (Switch, arXiv:2101.03961, sec. 2.2).

  >>> jitter(jnp.ones(2), 0.0, jax.random.key(0)).tolist()           # epsilon = 0 changes nothing
  [1.0, 1.0]
  """
  if key is None or epsilon == 0.0:
    return x
  return x * jax.random.uniform(key, x.shape, x.dtype, 1.0 - epsilon, 1.0 + epsilon)
