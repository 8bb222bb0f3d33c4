"""A linear gate from clusters: K-means of contexts, an expert for every cluster, a least-squares fit.

Letters: N contexts, D their width, E clusters and as many experts. Nothing here has a gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Fit(NamedTuple):
  """A gate f32[D or D+1,E], centroids f32[E,D], and f32[]: 1 where both are of a fit that was accepted."""
  gate: jax.Array
  centroids: jax.Array
  ok: jax.Array


def with_bias(x: jax.Array, bias: bool) -> jax.Array:
  """Returns [...,D+1], x [...,D] with a constant 1 behind it; x itself without `bias`.

  >>> with_bias(jnp.array([[2., 3.]]), True).tolist()
  [[2.0, 3.0, 1.0]]
  """
  return jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1) if bias else x


def clusters(contexts: jax.Array, start: jax.Array, there: jax.Array, iterations: int,
             tolerance: float) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns (member f32[N,E], 1 in the cluster of a context; centroids f32[E,D]; bool[], all is well).

  The distance is the mean absolute difference, a centroid is the mean of its cluster. It is well if no
  cluster was ever empty and centroids stopped moving before the last of `iterations`.

  Args:
    contexts: f32[N,D]; start: f32[E,D] centroids; there: bool[N], contexts that count.
  """
  def iterate(state, _):
    member, centroids, going, ok = state
    away = jnp.mean(jnp.abs(contexts[:, None] - centroids), axis=-1)               # [N, E]
    nearest = jax.nn.one_hot(jnp.argmin(away, axis=-1), len(centroids)) * there[:, None]
    size = jnp.sum(nearest, axis=0)                                  # [E]
    full = jnp.all(size > 0)
    means = jnp.einsum('ne,nd->ed', nearest, contexts, precision='highest') / jnp.maximum(size, 1)[:, None]
    still = jnp.all(jnp.abs(means - centroids) <= tolerance + 1e-5 * jnp.abs(centroids))
    keep = lambda new, old: jnp.where(going, new, old)
    state = keep(nearest, member), keep(means, centroids), going & full & ~still, keep(full & still, ok)
    return state, None

  first = jnp.zeros((len(contexts), len(start))), start, jnp.bool_(True), jnp.bool_(False)
  (member, centroids, _, ok), _ = jax.lax.scan(iterate, first, length=iterations - 1)
  return member, centroids, ok


def median(values: jax.Array, member: jax.Array) -> jax.Array:
  """Returns f32[E,M], the medians over each cluster's contexts of values f32[N,M]; member f32[N,E].

  >>> member = jnp.array([[1., 0.], [1., 0.], [1., 0.], [0., 1.]])
  >>> median(jnp.array([[1.], [5.], [2.], [9.]]), member).tolist()
  [[2.0], [9.0]]
  """
  inside = member.T[..., None] > 0                                   # [E, N, 1]
  ordered = jnp.sort(jnp.where(inside, values, jnp.inf), axis=1)     # [E, N, M]
  size = jnp.sum(inside, axis=1, keepdims=True)                      # [E, 1, 1]
  at = lambda place: jnp.take_along_axis(ordered, jnp.maximum(place, 0), axis=1)[:, 0]
  return (at((size - 1) // 2) + at(size // 2)) / 2


def experts(cost: jax.Array) -> jax.Array:
  """Returns i32[E], the expert of each cluster: in order, each takes the cheapest that is free.

  Args:
    cost: f32[E,E] of each cluster (rows) by every expert.

  >>> experts(jnp.array([[1., 2., 3.], [1., 2., 3.], [1., 2., 3.]])).tolist()
  [0, 1, 2]
  """
  def take(free, row):
    mine = jnp.argmin(jnp.where(free, row, jnp.inf))
    return free.at[mine].set(False), mine
  # A cost that is no number is the last choice, not the first.
  cost = jnp.where(jnp.isnan(cost), jnp.finfo(cost.dtype).max, jnp.minimum(cost, jnp.finfo(cost.dtype).max))
  return jax.lax.scan(take, jnp.ones(len(cost), bool), cost)[1]


def renew(gate: jax.Array, contexts: jax.Array, errors: jax.Array, start: jax.Array, noise: jax.Array, *,
          there: jax.Array, bias: bool = True, iterations: int = 20,
          tolerance: float = 1e-4) -> tuple[Fit, jax.Array]:
  """Returns (Fit, targets f32[N,E]) of MixER (arXiv:2502.05335): the gate stays where clustering fails.

  targets: 1 at the expert of a context; all 0 where clustering fails.

  Args:
    gate:     f32[D+1,E], without `bias` f32[D,E].
    contexts: f32[N,D]; errors: f32[N,E] of every expert on every context; start: f32[E,D] centroids.
    noise:    f32[N,D], added to contexts in the fit alone.
    there:    bool[N], contexts that count. iterations, tolerance: see `clusters`.
  """
  member, centroids, ok = clusters(contexts, start, there, iterations, tolerance)
  expert = experts(median(errors, member))                           # [E]
  targets = member @ jax.nn.one_hot(expert, errors.shape[1])         # [N, E]
  x = with_bias(contexts + noise, bias) * there[:, None]
  fitted = jnp.linalg.lstsq(x, targets)[0]                           # of least norm
  ok &= jnp.all(jnp.isfinite(fitted))
  return Fit(jnp.where(ok, fitted, gate), centroids, ok.astype(jnp.float32)), jnp.where(ok, targets, 0)
