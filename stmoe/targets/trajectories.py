"""Trajectories of environments, a few of which train together (MixER); families are recovered by experts."""

import typing

import jax
import jax.numpy as jnp
import numpy as np

from stmoe import ranges
from stmoe import targets
from stmoe.core.units import trajectories
from stmoe.errors import UserError


def together(losses: jax.Array, chosen: jax.Array, number: float, reweighted: bool) -> jax.Array:
  """Returns f32[], the outer loss of losses f32[B] of environments: of those `chosen` bool[B].

  The mean, `number` being how many are chosen. If `reweighted`, the sum of softmax(losses) * losses, whose
  gradient passes the weights, too.

  >>> float(together(jnp.array([1., 3., 9.]), jnp.array([True, True, False]), 2, False))
  2.0
  """
  if not reweighted:
    return jnp.sum(jnp.where(chosen, losses, 0)) / number
  weights = jax.nn.softmax(jnp.where(chosen, losses, -jnp.inf))
  return jnp.sum(jnp.where(chosen, weights * losses, 0))


class Trajectories:
  """The mean squared error of the trajectories [B,K,D] of environments against `values` f32[B,K,D].

  In training each row says by `around` which environment a batch gathers around. The loss is that of this
  environment and of those with the nearest contexts (MixER, arXiv:2502.05335). A batch holds every
  environment once, so train.batch_size is their number. `weights` f32[B,K] is 0 where there is no
  trajectory. `family` f32[B,F] is 1 at the family of a row's environment.

  `shown` f32[B,P] is 1 at the place, of P, at which figures show a row's first trajectory.

  Evaluation compares the experts of trajectories with their families: eval/rand is the adjusted Rand index, 1
  where experts are families and about 0 by chance.

  Args:
    contributors: environments of a loss, the gathering one included.
    reweighted:   they are weighed by the softmax of their losses, not equally; only in one microbatch.
    l1:           coefficient of the mean absolute value of an environment's context in its loss.
  """

  kinds, passes, run = ('trajectories',), 1, ''
  measures = {
      'loss/mse': targets.Measure('squared error'),
      'eval/loss': targets.Measure('squared error', said='eval loss {:.4g}'),
      'eval/rand': targets.Measure('', 'higher', 'adjusted Rand index {:.3f}'),
  }

  def __init__(self, *, contributors: ranges.Count = 3, reweighted: ranges.Flag = False,
               l1: ranges.NonNegative = 1e-3):
    self.contributors = contributors
    self.reweighted = reweighted
    self.l1 = l1

  def weights(self, batch: dict) -> jax.Array:
    """Returns f32[B,K]."""
    return batch['weights'].astype(jnp.float32)

  def counts(self, batch: dict) -> tuple:
    """Returns (rows of the whole batch, environments of a loss), two whole numbers."""
    rows = len(batch['weights'])
    return rows, min(self.contributors, rows)

  def loss(self, outputs: trajectories.Predicted, batch: dict, counts: tuple) -> tuple:
    """Returns (f32[], metrics) for the `units.trajectories.Predicted` of a batch; see `targets.Target`."""
    rows, number = counts
    if self.reweighted and len(batch['weights']) != rows:
      raise UserError('loss.reweighted=True weighs all environments of a batch against each other; nearest: '
                      'train.microbatches=1')
    weights = self.weights(batch)                                    # [B, K]
    error = jnp.sum(weights * _error(outputs, batch), axis=1) / jnp.maximum(jnp.sum(weights, axis=1), 1)
    each = error + self.l1 * jnp.mean(jnp.abs(outputs.context), axis=-1)           # [B]
    chosen = outputs.rank < self.contributors
    total = together(each, chosen, number, self.reweighted)
    return total, {'loss/mse': jax.lax.stop_gradient(together(error, chosen, number, False))}

  def judge(self, outputs: trajectories.Predicted, batch: dict) -> dict:
    """Returns dict(error f32[], table f32[F,E] of families and experts, what is shown [P,...]), all sums."""
    weights = self.weights(batch)                                    # [B, K]
    first = jax.nn.one_hot(jnp.argmax(outputs.choice, axis=-1), outputs.choice.shape[-1])
    table = jnp.einsum('bf,bke,bk->fe', batch['family'], first, weights, precision='highest')
    at_place = lambda x: jnp.einsum('bp,b...->p...', batch['shown'], x, precision='highest')
    shown = dict(initial=batch['initial'], wanted=batch['values'], predicted=outputs.values, choice=first)
    shown = {name: at_place(x[:, 0]) for name, x in shown.items()} | dict(family=at_place(batch['family']))
    return dict(error=jnp.sum(weights * _error(outputs, batch)), table=table, shown=shown)

  def metrics(self, totals: dict) -> dict:
    """Returns the mean squared error, how well experts are families, and what is shown."""
    return {'eval/loss': totals['error'] / totals['weight'], 'eval/rand': rand(totals['table']),
            targets.SHOWN: totals['shown']}


def _error(outputs, batch):
  """F32[B,K], the mean squared error of each trajectory."""
  values = batch['values']
  if outputs.values.shape != values.shape:
    raise UserError(f'the model gives trajectories {list(outputs.values.shape)}, and those of the data are '
                    f'{list(values.shape)}; nearest: model.d_model={values.shape[-1]}')
  return jnp.mean(jnp.square(outputs.values - values), axis=-1)


def rand(table: typing.Any) -> float:
  """Returns the adjusted Rand index of two divisions of one set; table [F,E] counts what they have in common.

  >>> rand([[2, 0], [0, 2]]), round(rand([[1, 1], [1, 1]]), 2)
  (1.0, -0.5)
  """
  from sklearn import metrics                                        # slow to import, and needed here alone
  table = np.rint(table).astype(int)
  by_family, by_expert = (np.repeat(axis.reshape(-1), table.reshape(-1)) for axis in np.indices(table.shape))
  return float(metrics.adjusted_rand_score(by_family, by_expert))
