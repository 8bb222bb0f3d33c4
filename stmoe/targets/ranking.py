"""Pairs of the items of a row in their order: a score each (RankNet)."""

import jax
import jax.numpy as jnp

from stmoe import targets
from stmoe.errors import UserError
from stmoe.targets import values


class Ranking:
  """The logistic loss of pairs (RankNet, Burges et al. 2005, eq. 3), a mean over all pairs of all rows.

  A row holds K items, with a score each: outputs f32[B,K]. `values` f32[B,K] say how good the items are.
  Every two items of a row with different values are a pair, which costs log(1 + e^(s_worse - s_better)).
  Items of different rows are never compared, so that microbatches change nothing. The entry `weights`
  f32[B,K] is 0 where there is no item; a pair weighs the product of its items' weights.
  """

  kinds, passes, run = ('values',), 1, ''
  measures = {
      'loss/ce': targets.Measure('nats per pair'),
      'eval/loss': targets.Measure('nats per pair', said='eval loss {:.4f}'),
      'eval/accuracy': targets.Measure('', 'higher', '{:.1%} of the pairs in order'),
  }

  def weights(self, batch: dict) -> jax.Array:
    """Returns f32[B,K,K], the weight of every pair: the better item is on the first of the two item axes."""
    good, real = batch['values'], batch['weights'].astype(jnp.float32)
    return jnp.where(good[:, :, None] > good[:, None], real[:, :, None] * real[:, None], 0.0)

  def counts(self, batch: dict) -> jax.Array:
    """Returns f32[], the sum of the weights of the pairs."""
    return targets.divisor(self.weights(batch))

  def loss(self, outputs: jax.Array, batch: dict, counts: jax.Array) -> tuple:
    """Returns (f32[], metrics) for scores f32[B,K]; see `targets.Target`."""
    mean = self.judge(outputs, batch)['ce'] / counts
    return mean, {'loss/ce': mean}

  def judge(self, outputs: jax.Array, batch: dict) -> dict:
    """Returns dict(ce, right), f32[] sums over the pairs, of scores f32[B,K]; a tie is half right."""
    values.check(outputs, batch)
    if outputs.shape[1] < 2:
      raise UserError('loss.name=ranking compares the values of a row, and a row of the data has one; '
                      'nearest: loss.name=values, loss.name=binary, or rows of several values')
    weights = self.weights(batch)
    ahead = outputs[:, :, None] - outputs[:, None]                   # [B, K, K]
    right = 0.5 * (1 + jnp.sign(ahead))
    return dict(ce=jnp.sum(weights * jax.nn.softplus(-ahead)), right=jnp.sum(weights * right))

  def metrics(self, totals: dict) -> dict:
    """Returns loss and share of the pairs in order."""
    return {'eval/loss': totals['ce'] / totals['weight'], 'eval/accuracy': totals['right'] / totals['weight']}
