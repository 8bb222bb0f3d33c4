"""Batch normalisation: the statistics of a graph or an image in training, running ones in evaluation."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe.core import contract


class BatchNorm(nnx.Module):
  """(x - mean) / sqrt(variance + epsilon) * scale + bias, over the real tokens of a row (arXiv:1502.03167).

  In training, mean and variance are those of each row. So a row's result depends on no other row: neither
  microbatches nor devices change the result. For batches of one row, a whole graph, the module is PyTorch's
  BatchNorm1d. Evaluation has running means, which `commit` moves once per optimizer step.

  Args:
    width:    D.
    name:     under which statistics are reported, unique in the layer.
    momentum: part of the running means that a step replaces.
  State: mean and variance f32[D]; the running variance is unbiased, as PyTorch's.
  Differs: with several rows in a batch, every row has statistics of its own; the paper has one for all.
  """

  def __init__(self, width: int, name: str, *, momentum: float = 0.1, epsilon: float = 1e-5, rngs):
    self.scale = axes.param(nnx.initializers.ones, (width,), 'embed', rngs=rngs)
    self.bias = axes.param(nnx.initializers.zeros, (width,), 'embed', rngs=rngs)
    self.mean = axes.state(jnp.zeros(width), 'embed')
    self.variance = axes.state(jnp.ones(width), 'embed')
    self.name = name
    self.momentum = momentum
    self.epsilon = epsilon

  def __call__(self, x: jax.Array, ctx: contract.Context) -> tuple[jax.Array, dict]:
    """Returns (f32[B,T,D], dict name -> Statistic) for x [B,T,D]; no statistics in evaluation."""
    if not ctx.train:
      return self._scaled(x, self.mean[...], self.variance[...]), {}
    mask = ctx.mask[..., None]                                       # [B, T, 1]
    number = jnp.sum(mask, axis=1, keepdims=True, dtype=jnp.float32)                 # [B, 1, 1]
    average = lambda y: jnp.sum(jnp.where(mask, y, 0), axis=1, keepdims=True) / jnp.maximum(number, 1)
    mean = average(x)                                                # [B, 1, D]
    variance = average(jnp.square(x - mean))
    unbiased = variance * number / jnp.maximum(number - 1, 1)
    rows = jnp.sum(number > 0, dtype=jnp.float32)
    of_rows = lambda y: contract.mean(jnp.sum(jax.lax.stop_gradient(y)[:, 0], axis=0), rows)
    return self._scaled(x, mean, variance), {f'{self.name}.mean': of_rows(mean),
                                             f'{self.name}.variance': of_rows(unbiased)}

  def commit(self, aux: contract.Aux) -> None:
    """Moves the running means f32[D] by the statistics of one optimizer step."""
    for part, state in (('mean', self.mean), ('variance', self.variance)):
      new = aux.statistics[f'{self.name}.{part}'].value
      state[...] = (1 - self.momentum) * state[...] + self.momentum * new

  def _scaled(self, x, mean, variance):
    return (x - mean) * jax.lax.rsqrt(variance + self.epsilon) * self.scale[...] + self.bias[...]
