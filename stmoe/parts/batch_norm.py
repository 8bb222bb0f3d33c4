"""Batch normalisation of images: the statistics of the batch in training, running ones otherwise."""

import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe.core import contract

# What modules with such norms report in training: dict path below the module -> Statistic f32[2,C].
Seen = dict[str, contract.Statistic]


class BatchNorm(nnx.Module):
  """(x - mean) / sqrt(var + epsilon) * scale + bias by channel, of images [B,H,W,C] (arXiv:1502.03167).

  In training the mean and the variance are those of the batch, of all devices; in microbatches each has its
  own, so that these change the result. The call changes nothing: it reports the statistics, and `commit`
  moves the running ones, once a step.

  Args:
    channels: C.
    momentum: part of the batch's statistics in the running ones; the batch's variance is the unbiased one.
  State: mean and variance f32[C], the running ones; 0 and 1 at first.
  """

  def __init__(self, channels: int, *, momentum=0.1, epsilon=1e-5, rngs):
    self.scale = axes.param(nnx.initializers.ones, (channels,), 'unmodeled', rngs=rngs)
    self.bias = axes.param(nnx.initializers.zeros, (channels,), 'unmodeled', rngs=rngs)
    self.mean = axes.state(jnp.zeros(channels), 'unmodeled')
    self.variance = axes.state(jnp.ones(channels), 'unmodeled')
    self.momentum = momentum
    self.epsilon = epsilon

  def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, Seen]:
    """Returns (y [B,H,W,C], dict('' -> Statistic f32[2,C]), {} outside of training) for x [B,H,W,C]."""
    x32, seen = x.astype(jnp.float32), {}
    mean, variance = self.mean[...], self.variance[...]
    if train:
      mean = jnp.mean(x32, axis=(0, 1, 2))
      variance = jnp.mean(jnp.square(x32 - mean), axis=(0, 1, 2))
      number = x32.size // x32.shape[-1]
      batch = jnp.stack([mean, variance * number / max(number - 1, 1)])
      seen = {'': contract.mean(jax.lax.stop_gradient(batch), jnp.float32(1))}
    y = (x32 - mean) * jax.lax.rsqrt(variance + self.epsilon) * self.scale[...] + self.bias[...]
    return y.astype(x.dtype), seen

  def commit(self, batch: jax.Array) -> None:
    """Moves the running statistics to those of a batch f32[2,C]."""
    for running, new in zip((self.mean, self.variance), batch):
      running[...] += self.momentum * (new - running[...])


def under(name: str, seen: Seen) -> Seen:
  """Returns what a part called `name` reported, Statistics f32[2,C], by the paths below its owner."""
  return {f'{name}.{path}'.rstrip('.'): statistic for path, statistic in seen.items()}


def commit(module: nnx.Module, seen: Seen) -> None:
  """Moves the running statistics of all norms in `module` by what they reported in a step, f32[2,C] each."""
  for path, statistic in seen.items():
    part: typing.Any = module
    for name in path.split('.'):
      part = part[int(name)] if name.isdecimal() else getattr(part, name)
    part.commit(statistic.value)
