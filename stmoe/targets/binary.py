"""Several yes or no tasks a row: a logit each, with the area under the ROC curve of every task."""

import jax
import jax.numpy as jnp
import numpy as np

from stmoe import targets
from stmoe.targets import values

BINS, RANGE = 4096, 16.0               # of logits, from -RANGE to RANGE; logits beyond are in the last bins


class Binary:
  """The log loss of outputs [B,n] against `values` f32[B,n], 0 or 1 (or a probability): the mean over tasks.

  The entry `weights` f32[B,n] weighs every answer; 0 = no answer, so that every task has rows of its own.
  The loss of a task is its mean over its rows. So no task counts more for having more rows.

  The area under the curve needs the order of all rows. Evaluation counts the answers of each task in BINS
  bins of the logit, which add up exactly over batches and devices. A yes and a no in one bin, 1/128 apart at
  most, count as equal: half in order. A task without a yes or without a no has no area.
  """

  kinds, passes, run = ('values',), 1, ''
  measures = {
      'loss/ce': targets.Measure('nats per answer'),
      'eval/loss': targets.Measure('nats per answer', said='eval loss {:.4f}'),
      'eval/auc': targets.Measure('', 'higher', 'AUC {:.4f}'),
      'eval/accuracy': targets.Measure('', 'higher', 'accuracy {:.1%}'),
  }

  def weights(self, batch: dict) -> jax.Array:
    """Returns f32[B,n]."""
    return batch['weights'].astype(jnp.float32)

  def counts(self, batch: dict) -> tuple:
    """Returns (f32[n] the weight of each task, f32[] the number of tasks with any weight)."""
    task_weight = jnp.sum(self.weights(batch), axis=0)               # [n]
    return jnp.where(task_weight > 0, task_weight, 1.0), jnp.maximum(jnp.sum(task_weight > 0), 1)

  def loss(self, outputs: jax.Array, batch: dict, counts: jax.Array) -> tuple:
    """Returns (f32[], metrics) for logits f32[B,n]; see `targets.Target`."""
    task_weight, tasks = counts
    values.check(outputs, batch)
    sums = jnp.sum(self.weights(batch) * log_loss(outputs, batch['values']), axis=0)   # [n]
    mean = jnp.sum(sums / task_weight) / tasks
    return mean, {'loss/ce': mean}

  def judge(self, outputs: jax.Array, batch: dict) -> dict:
    """Returns dict of f32[n] (ce, right, each) and yes, no: f32[n,BINS], of logits f32[B,n]."""
    values.check(outputs, batch)
    yes, weights = batch['values'], self.weights(batch)
    right = (outputs > 0) == (yes > 0.5)
    total = lambda x: jnp.sum(weights * x, axis=0)                   # [n]
    return dict(ce=total(log_loss(outputs, yes)), right=total(right), each=total(1.0),
                yes=histogram(outputs, weights * yes), no=histogram(outputs, weights * (1 - yes)))

  def metrics(self, totals: dict) -> dict:
    """Returns loss, accuracy and AUC, the means over the tasks, and of several tasks the AUC of each."""
    task_weight = totals['each']
    weighed = task_weight > 0
    mean = lambda name: float(np.mean(totals[name][weighed] / task_weight[weighed]))
    numbers = {'eval/loss': mean('ce'), 'eval/accuracy': mean('right')}
    areas = {task: area(*pair) for task, pair in enumerate(zip(totals['yes'], totals['no']))
             if all(x.sum() > 0 for x in pair)}
    if areas:
      numbers['eval/auc'] = float(np.mean(list(areas.values())))
    by_task = {f'eval/auc_{task}': value for task, value in areas.items()}
    return numbers | (by_task if len(weighed) > 1 else {})


def log_loss(logits: jax.Array, yes: jax.Array) -> jax.Array:
  """Returns f32[...], -yes log p - (1 - yes) log(1 - p) with p = sigmoid(logits), for both [...]."""
  return jax.nn.softplus(logits) - yes * logits


def histogram(logits: jax.Array, weights: jax.Array) -> jax.Array:
  """Returns f32[n,BINS], the sums of weights f32[B,n] by task and bin of the logits f32[B,n]."""
  place = jnp.floor((logits + RANGE) * (BINS / (2 * RANGE)))
  place = jnp.clip(place, 0, BINS - 1).astype(jnp.int32)             # [B, n]
  tasks = jnp.broadcast_to(jnp.arange(logits.shape[1]), logits.shape)
  return jnp.zeros((logits.shape[1], BINS)).at[tasks, place].add(weights)


def area(yes: np.ndarray, no: np.ndarray) -> float:
  """Returns the share of pairs of a yes and a no where the yes has the larger logit; equal pairs count half.

  >>> area(np.array([0, 1, 3]), np.array([2, 1, 1])), area(np.array([0, 2]), np.array([5, 0]))
  (0.8125, 1.0)

  Args:
    yes, no: f64[BINS], how many of each are in a bin.
  """
  below = np.cumsum(no) - no
  return float(np.sum(yes * (below + 0.5 * no)) / (np.sum(yes) * np.sum(no)))
