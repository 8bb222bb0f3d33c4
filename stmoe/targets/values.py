"""Values: numbers of a row, predicted with a squared error (regression)."""

import math

import jax
import jax.numpy as jnp

from stmoe import targets
from stmoe.errors import UserError


class Values:
  """The mean squared error of the outputs [B,n] against the entry `values` f32[B,n] of a batch.

  The entry `weights` f32[B,n] weighs every value; 0 = no value is there. Evaluation has the error of each of
  several values, too, as loss_0, loss_1 and so on.
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
    mean = jnp.sum(self._errors(outputs, batch)) / counts
    return mean, {'loss/mse': mean}

  def judge(self, outputs: jax.Array, batch: dict) -> dict:
    """Returns sums: f32[] of the squared errors of outputs f32[B,n], f32[n] of errors and of weights."""
    errors = self._errors(outputs, batch)
    return dict(error=jnp.sum(errors), errors=jnp.sum(errors, axis=0),
                weights=jnp.sum(self.weights(batch), axis=0))

  def metrics(self, totals: dict) -> dict:
    """Returns the mean squared error, its root, and of several values the error of each that has a weight."""
    mean = totals['error'] / totals['weight']
    each = zip(totals['errors'], totals['weights'])
    several = len(totals['errors']) > 1
    return {'eval/loss': mean, 'eval/rmse': math.sqrt(mean)} | {
        f'eval/loss_{number}': float(error / weight) for number, (error, weight) in enumerate(each)
        if several and weight}

  def _errors(self, outputs, batch):
    """The weighted squared errors [B,n]."""
    check(outputs, batch)
    return self.weights(batch) * jnp.square(outputs - batch['values'])


def check(outputs: jax.Array, batch: dict) -> None:
  """Raises UserError unless there is an output [B,n] for every value [B,n] and weight [B,n]."""
  shapes = [tuple(x.shape) for x in (outputs, batch['values'], batch['weights'])]
  if len(set(shapes)) > 1:
    raise UserError(f'the model gives numbers of shape {list(shapes[0])}, and the data have values of '
                    f'{list(shapes[1])} and weights of {list(shapes[2])}; nearest: model.num_outputs='
                    f'{shapes[1][-1]}')
