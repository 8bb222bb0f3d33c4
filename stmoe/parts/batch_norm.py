"""Batch normalisation: the statistics of the batch in training, running ones in evaluation."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import errors
from stmoe.core import contract
from stmoe.errors import UserError


class BatchNorm(nnx.Module):
  """(x - mean) / sqrt(variance + epsilon) * scale + bias, of each unit over a batch (arXiv:1502.03167).

  The call changes nothing: it reports what it saw, of all devices, and `commit` moves the running statistics
  once a step.

  Args:
    shape:      of the units, the last axes of what is normalised. names: of these axes.
    name:       under which statistics are reported, unique in the layer.
    group_size: rows whose statistics are taken together, consecutive ones; None = all rows of a batch. With
      microbatches those are all rows of a microbatch; with a `group_size` their number changes nothing.
    momentum:   part of the running statistics that a step replaces.
  State: running mean and variance f32[*shape], 0 and 1 at first; the variance is the unbiased one.
  """

  def __init__(self, shape: tuple[int, ...], names: tuple[str | None, ...], name: str = 'norm', *,
               group_size: int | None = None, momentum: float = 0.1, epsilon: float = 1e-5, rngs):
    self.scale = axes.param(nnx.initializers.ones, shape, *names, rngs=rngs)
    self.bias = axes.param(nnx.initializers.zeros, shape, *names, rngs=rngs)
    self.mean = axes.state(jnp.zeros(shape), *names)
    self.variance = axes.state(jnp.ones(shape), *names)
    self.name = name
    self.group_size = group_size
    self.momentum = momentum
    self.epsilon = epsilon

  def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> tuple[jax.Array, dict]:
    """Returns (y [B,...,*shape], dict name -> Statistic of mean and variance) for x [B,...,*shape].

    train: False takes the running statistics, and sees nothing.
    mask:  bool[B,...], False of what does not count; None = all counts.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if not train:
      return self._scaled(wide, self.mean[...], self.variance[...]).astype(x.dtype), {}
    units = self.scale[...].shape
    size = self.group_size or len(x)
    if len(x) % size:
      raise UserError(f'group_size={size} does not divide the {len(x)} rows of a microbatch, which a batch '
                      f'norm takes together; nearest: {errors.closest(size, errors.divisors(len(x)))}')
    real = jnp.ones(x.shape[:x.ndim - len(units)], bool) if mask is None else mask
    rows = wide.reshape(len(x) // size, -1, *units)                   # [G, N, *shape]
    real = real.reshape(*rows.shape[:2], *[1] * len(units))
    number = jnp.sum(real, axis=1, keepdims=True, dtype=wide.dtype)
    average = lambda y: jnp.sum(jnp.where(real, y, 0), axis=1, keepdims=True) / jnp.maximum(number, 1)
    mean = average(rows)                                             # [G, 1, *shape]
    variance = average(jnp.square(rows - mean))
    groups = jnp.sum(number > 0, dtype=jnp.float32)                  # with anything that counts
    of_groups = lambda y: contract.mean(
        jnp.sum(jnp.where(number > 0, jax.lax.stop_gradient(y), 0)[:, 0], axis=0), groups)
    seen = {f'{self.name}.mean': of_groups(mean),
            f'{self.name}.variance': of_groups(variance * number / jnp.maximum(number - 1, 1))}
    return self._scaled(rows, mean, variance).reshape(x.shape).astype(x.dtype), seen

  def _scaled(self, x, mean, variance):
    return (x - mean) * jax.lax.rsqrt(variance + self.epsilon) * self.scale[...] + self.bias[...]

  def commit(self, aux: contract.Aux) -> None:
    """Moves the running statistics f32[*shape] by those of one optimizer step; evaluation has none."""
    if f'{self.name}.mean' not in aux.statistics:
      return
    for part in ('mean', 'variance'):
      variable, statistic = getattr(self, part), aux.statistics[f'{self.name}.{part}']
      moved = self.momentum * (statistic.value - variable[...])
      variable[...] += jnp.where(statistic.count > 0, moved, 0)
