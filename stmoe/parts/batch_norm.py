"""Normalisation over the rows of a batch, by moving averages in evaluation."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe.core import contract
from stmoe.errors import UserError

MOMENTUM, EPSILON = 0.9, 1e-5


class BatchNorm(nnx.Module):
  """(x - mean) / sqrt(variance + eps) scale + bias, of every unit [E,H] over the rows of a batch.

  Training takes mean and variance of the rows, of all devices; padding does not count. Evaluation takes their
  moving averages, which the step moves once (`commit`). The averages are RouterState.

  Args:
    group_size: rows whose mean and variance are taken together, consecutive ones; None = all rows of a
      batch. With microbatches that are all rows of a microbatch, and only with a `group_size` does their
      number change nothing.
  """

  def __init__(self, num_experts: int, width: int, *, group_size=None, rngs):
    shape, names = (num_experts, width), ('expert', 'mlp')
    self.scale = axes.param(nnx.initializers.ones, shape, *names, rngs=rngs)
    self.bias = axes.param(nnx.initializers.zeros, shape, *names, rngs=rngs)
    self.mean = axes.state(jnp.zeros(shape), *names)
    self.variance = axes.state(jnp.ones(shape), *names)
    self.group_size = group_size

  def __call__(self, x: jax.Array, ctx: contract.Context) -> tuple[jax.Array, dict]:
    """Returns (x normalised, dict of Statistics mean and variance) for x [B,E,H], Context of [B,1]."""
    if not ctx.train:
      return self._scaled(x, self.mean[...], self.variance[...]), {}
    size = self.group_size or len(x)
    if len(x) % size:
      near = max(n for n in range(1, size + 1) if len(x) % n == 0)
      raise UserError(f'model.mixer.group_size={size} does not divide the {len(x)} rows of a microbatch; '
                      f'nearest: {near}')
    rows = x.reshape(-1, size, *x.shape[1:])                         # [G, S, E, H]
    real = ctx.mask.reshape(-1, size, *[1] * (x.ndim - 1))
    count = jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1)
    mean = jnp.sum(rows * real, axis=1, keepdims=True) / count       # [G, 1, E, H]
    variance = jnp.sum(jnp.square(rows - mean) * real, axis=1, keepdims=True) / count
    filled = jnp.any(real, axis=1)                                   # [G, 1, 1], groups with any row
    total = lambda a: jax.lax.stop_gradient(jnp.sum(a[:, 0] * filled, axis=0))
    statistics = {name: contract.mean(total(a), jnp.sum(filled, dtype=jnp.float32))
                  for name, a in (('mean', mean), ('variance', variance))}
    return self._scaled(rows, mean, variance).reshape(x.shape), statistics

  def _scaled(self, x, mean, variance):
    return (x - mean) * jax.lax.rsqrt(variance + EPSILON) * self.scale[...] + self.bias[...]

  def commit(self, aux: contract.Aux) -> None:
    """Moves the averages [E,H] by the statistics of one optimizer step."""
    for name in ('mean', 'variance'):
      variable, statistic = getattr(self, name), aux.statistics[name]
      seen = statistic.count > 0
      variable[...] += jnp.where(seen, (1 - MOMENTUM) * (statistic.value - variable[...]), 0)
