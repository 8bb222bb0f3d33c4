"""Several yes or no tasks a row: a logit each, with the area under the ROC curve of every task."""

import copy

import jax
import jax.numpy as jnp
import numpy as np

from stmoe import ranges
from stmoe import targets
from stmoe.errors import UserError
from stmoe.targets import values


class Binary:
  """The log loss of outputs [B,n] against `values` f32[B,n], 0 or 1 (or a probability): the mean over tasks.

  The entry `weights` f32[B,n] weighs every answer; 0 = no answer, so that every task has rows of its own.
  The loss of a task is its mean over its rows. So no task counts more for having more rows.

  The area under the curve needs the order of all rows. Evaluation gathers the logits of the whole split, of
  all batches and devices, so that the area is exact; equal logits are half in order. A task without a yes or
  without a no has no area. Where a batch has `group` i32[B], the user of every row, the areas of each user
  are averaged, too. GAUC weighs a user by its rows, UAUC does not; users without a yes or a no are left out.
  Where a batch has `part` i32[B], the areas of each part of the rows are said, of all tasks together, as
  auc_part_0.

  Args:
    task_weights: w of every task: the loss is then sum_t w_t L_t (PLE, RecSys 2020). () = the mean over the
      tasks that have an answer.
    decays:       g of every task: after e epochs its weight is w g^e; () = weights stay.
    epoch:        steps of an epoch.
  """

  kinds, passes, run = ('values',), 1, ''
  measures = {
      'loss/ce': targets.Measure('nats per answer'),
      'eval/loss': targets.Measure('nats per answer', said='eval loss {:.4f}'),
      'eval/auc': targets.Measure('', 'higher', 'AUC {:.4f}'),
      'eval/gauc': targets.Measure('', 'higher', 'GAUC {:.4f}', of='group'),
      'eval/uauc': targets.Measure('', 'higher', of='group'),
      'eval/accuracy': targets.Measure('', 'higher', 'accuracy {:.1%}'),
  }

  def __init__(self, *, task_weights: ranges.Many(ranges.NonNegative) = (),
               decays: ranges.Many(ranges.Positive) = (), epoch: ranges.Count = 1):
    if decays and len(decays) != len(task_weights):
      raise UserError(f'loss.decays={tuple(decays)}: there are {len(decays)}, and {len(task_weights)} '
                      f'task_weights; nearest: a decay for each weight')
    self.task_weights = tuple(task_weights)
    self.decays = tuple(decays)
    self.epoch = epoch
    self.epochs: int | jax.Array = 0     # that are over

  def at(self, step: jax.Array) -> 'Binary':
    """Returns the target in training step `step` i32[]."""
    now = copy.copy(self)
    now.epochs = step // self.epoch
    return now

  def fits(self, facts: dict) -> None:
    """Raises UserError for training rows of which a task has no yes, no no, or another number than 0 to 1.

    facts: of the data; see `info` of data/batches.py.
    """
    for name, (least, most) in facts.get('answers', {}).items():
      if least < 0 or most > 1:
        raise UserError(f'data.labels: {name} is {most if most > 1 else least:g} in a row of training; '
                        'loss.name=binary judges answers from 0 to 1; nearest: loss.name=values')
      if most == 0 or least == 1:
        raise UserError(f'data.labels: {name} is {most:g} in every row of training, so that there is nothing '
                        f'to learn; a task needs rows with 0 and with 1, nearest: data.labels without {name}')

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
    self._check(outputs, batch)
    sums = jnp.sum(self.weights(batch) * log_loss(outputs, batch['values']), axis=0)   # [n]
    total = self._together(sums / task_weight, tasks)
    return total, {'loss/ce': total}

  def _check(self, outputs, batch):
    """Raises UserError unless there is an output [B,n] for every answer, and a weight for every task."""
    values.check(outputs, batch)
    if len(self.task_weights) not in (0, outputs.shape[1]):
      raise UserError(f'loss.task_weights={self.task_weights}: there are {len(self.task_weights)} for '
                      f'{outputs.shape[1]} tasks; nearest: one for each')

  def _together(self, task_loss, tasks):
    """The loss of all tasks from the loss [n] of each; `tasks` is the number of those with an answer."""
    if not self.task_weights:
      return task_loss.sum() / tasks
    weights = np.asarray(self.task_weights)                          # [n]
    if self.decays:
      weights = weights * np.asarray(self.decays) ** self.epochs
    return (weights.astype(task_loss.dtype) * task_loss).sum()

  def judge(self, outputs: jax.Array, batch: dict) -> dict:
    """Returns sums f32[n] and `targets.Rows` (scores, yes, no [B,n], group [B]) of logits f32[B,n]."""
    self._check(outputs, batch)
    yes, weights = batch['values'], self.weights(batch)
    right = (outputs > 0) == (yes > 0.5)
    total = lambda x: jnp.sum(weights * x, axis=0)                   # [n]
    sums = dict(ce=total(log_loss(outputs, yes)), right=total(right), each=total(1.0))
    rows = dict(scores=outputs, yes=weights * yes, no=weights * (1 - yes))             # [B, n]
    rows |= {name: batch[name] for name in ('group', 'part') if name in batch}
    return sums | {name: targets.Rows(array) for name, array in rows.items()}

  def metrics(self, totals: dict) -> dict:
    """Returns loss, accuracy and areas, the means over the tasks, and of several tasks the areas of each."""
    each = totals['each']
    weighed = each > 0
    mean = np.where(weighed, totals['ce'] / np.where(weighed, each, 1), 0)
    right = totals['right'][weighed] / each[weighed]
    loss = float(self._together(mean, weighed.sum()))
    numbers = {'eval/loss': loss, 'eval/accuracy': float(np.mean(right))}
    rows = {name: sums.values for name, sums in totals.items() if isinstance(sums, targets.Rows)}
    part = rows.pop('part', None)
    for number in () if part is None else np.unique(part):
      inside = {name: array[part == number] for name, array in rows.items()}
      for name, value in _areas(inside, np.s_[:]).items():
        numbers[f'eval/{name}_part_{int(number)}'] = value
    of_tasks = [_areas(rows, np.s_[task:task + 1]) for task in range(len(each))]
    for name in ('auc', 'gauc', 'uauc'):
      known = {task: areas[name] for task, areas in enumerate(of_tasks) if name in areas}
      if known:
        numbers[f'eval/{name}'] = float(np.mean(list(known.values())))
      if len(each) > 1:
        numbers |= {f'eval/{name}_{task}': value for task, value in known.items()}
    return numbers


def _areas(rows, tasks):
  """Dict of the auc of some tasks and, where rows have users, gauc and uauc; without those undefined."""
  scores, yes, no = (rows[name][:, tasks].T.reshape(-1) for name in ('scores', 'yes', 'no'))
  found = {}
  area, _ = areas(scores, yes, no, np.zeros(len(scores), int))
  if len(area):
    found['auc'] = float(area[0])
  if 'group' in rows:
    repeated = np.tile(rows['group'], len(scores) // max(len(rows['group']), 1))
    area, size = areas(scores, yes, no, repeated)
    if len(area):
      found |= dict(gauc=float(area @ size / size.sum()), uauc=float(area.mean()))
  return found


def log_loss(logits: jax.Array, yes: jax.Array) -> jax.Array:
  """Returns f32[...], -yes log p - (1 - yes) log(1 - p) with p = sigmoid(logits), for both [...]."""
  return jax.nn.softplus(logits) - yes * logits


def areas(scores: np.ndarray, yes: np.ndarray, no: np.ndarray, group: np.ndarray) -> tuple:
  """Returns (area f64[U] under the ROC curve of each group that has a yes and a no, its rows f64[U]).

  The area is the share of pairs of a yes and a no of the group where the yes has the larger score; pairs of
  equal scores count half.

  >>> scores, yes = np.array([0.1, 0.4, 0.4, 0.8, 0.5]), np.array([0, 1, 0, 1, 1])
  >>> areas(scores, yes, 1 - yes, np.zeros(5, int))[0].round(4).tolist()
  [0.9167]
  >>> areas(scores, yes, 1 - yes, np.array([0, 0, 1, 1, 2]))     # the third group has no no
  (array([1., 1.]), array([2., 2.]))

  Args:
    scores, yes, no, group: [N] of every row its score, its weight as a yes and as a no, and its group.
  """
  _, group = np.unique(group, return_inverse=True)
  order = np.lexsort((scores, group))
  scores, yes, no, group = (x[order] for x in (scores, yes, no, group))
  new = np.ones(len(scores), bool)                                   # where another score or group begins
  new[1:] = (np.diff(scores) != 0) | (np.diff(group) != 0)
  place = np.cumsum(new) - 1
  group = group[new]                                                 # [P], of every place in the order
  yes, no = np.bincount(place, yes), np.bincount(place, no)          # [P]
  all_yes, all_no = np.bincount(group, yes), np.bincount(group, no)  # [U]
  first = np.cumsum(all_no) - all_no                                 # no of all groups before
  below = np.cumsum(no) - no - first[group]
  pairs = np.bincount(group, yes * (below + 0.5 * no))
  both = (all_yes > 0) & (all_no > 0)
  return pairs[both] / (all_yes * all_no)[both], (all_yes + all_no)[both]
