"""Values: numbers of a row, predicted with a squared error (regression)."""

import math

import jax
import jax.numpy as jnp

from stmoe import targets
from stmoe.errors import UserError


class Values:
  """The mean squared error of the outputs [B,n] against the entry `values` f32[B,n] of a batch.

  The entry `weights` f32[B,n] weighs every value; 0 = no value is there.
  """

  kinds, passes, run = ('values',), 1, ''
  measures = {
      'loss/mse': targets.Measure('squared error'),
      'eval/loss': targets.Measure('squared error', said='eval loss {:.4f}'),
      'eval/rmse': targets.Measure('root of the mean squared error', said='error {:.4g}'),
  }

  def weights(self, batch: dict) -> jax.Array:
    """Returns f32[B,n]."""
    return batch['weights'].astype(jnp.float32)

  def counts(self, batch: dict) -> jax.Array:
    """Returns f32[], the sum of the weights."""
    return targets.divisor(self.weights(batch))

  def loss(self, outputs: jax.Array, batch: dict, counts: jax.Array) -> tuple:
    """Returns (f32[], metrics) for outputs f32[B,n]; see `targets.Target`."""
    mean = self.judge(outputs, batch)['error'] / counts
    return mean, {'loss/mse': mean}

  def judge(self, outputs: jax.Array, batch: dict) -> dict:
    """Returns dict(error), the weighted sum f32[] of the squared errors of outputs f32[B,n]."""
    check(outputs, batch)
    return dict(error=jnp.sum(self.weights(batch) * jnp.square(outputs - batch['values'])))

  def metrics(self, totals: dict) -> dict:
    """Returns the mean squared error, and its root."""
    mean = totals['error'] / totals['weight']
    return {'eval/loss': mean, 'eval/rmse': math.sqrt(mean)}


def check(outputs: jax.Array, batch: dict) -> None:
  """Raises UserError unless there is an output [B,n] for every value [B,n] and weight [B,n]."""
  shapes = [tuple(x.shape) for x in (outputs, batch['values'], batch['weights'])]
  if len(set(shapes)) > 1:
    raise UserError(f'the model gives numbers of shape {list(shapes[0])}, and the data have values of '
                    f'{list(shapes[1])} and weights of {list(shapes[2])}; nearest: model.num_outputs='
                    f'{shapes[1][-1]}')
