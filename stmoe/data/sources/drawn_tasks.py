"""Drawn tasks: features, and several answers that are related to one another as much as is said."""

import dataclasses
import typing

import ml_collections
import numpy as np

from stmoe import errors
from stmoe import ranges
from stmoe.data import arrays
from stmoe.data import record as records


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawnTasks:
  """Rows of MMoE's generator (Ma et al., KDD 2018): entries `features` f32[rows,d], `values` f32[rows,K].

  u_1, ..., u_K are orthonormal, x ~ N(0, I), and of task k
    w_1 = c u_1,  w_k = c (p u_1 + sqrt(1 - p^2) u_k)
    y_k = w_k x + sum_{i=1}^m sin(a_i w_k x + b_i) + e,  a, b ~ N(0, 1),  e ~ N(0, noise^2)
  All tasks have the same a and b. `weights` f32[rows,K] is 1.

  problem:      number of the problem: everything is drawn from this seed.
  num_tasks:    K; the paper has 2.
  correlation:  p.
  num_features: d.
  scale:        c.
  sines:        m.
  noise:        deviation of e.
  num_rows, num_held_out: rows of training and of validation.
  positives:    share of yes of each task in training: a value is 1 where y is above the quantile, else 0.
    () = values are y itself, less its mean, over its deviation in training. The loss of 1 is then that of the
    best constant.
  cache_dir: folder of caches; '' = $STMOE_CACHE_DIR, else ~/.cache/stmoe.
  """
  problem: ranges.Seed = 0
  num_tasks: ranges.Whole(2, 64) = 2
  correlation: ranges.Share = 0.5
  num_features: ranges.Count = 100
  scale: ranges.Positive = 1.0
  sines: ranges.Natural = 10
  noise: ranges.NonNegative = 0.1
  num_rows: ranges.Count = 20_000
  num_held_out: ranges.Count = 5_000
  positives: ranges.Many(ranges.Between01) = ()
  cache_dir: ranges.Text = ''

  kind, targets, files = 'drawn_tasks', 'values', ()

  @property
  def answers(self) -> tuple:
    """The names of the tasks."""
    return tuple(f'task {task}' for task in range(self.num_tasks))

  def content(self) -> dict:
    """Returns what says which data these are, for data.json."""
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)
            if field.name != 'cache_dir'}

  def shapes(self, rows: int) -> dict:
    """Returns dict name -> (shape, dtype) of a batch."""
    each = ((rows, self.num_tasks), np.float32)
    return dict(features=((rows, self.num_features), np.float32), values=each, weights=each)

  def lengths(self, model: typing.Any = None) -> dict:
    """Returns dict stack -> positions of a row: a row is one token."""
    return dict(encoder=1, decoder=1)

  def open(self, cfg: ml_collections.ConfigDict, found: records.Record = records.NONE) -> arrays.Opened:
    """Returns the rows; of a run's Record `found` if they are the same."""
    return arrays.Opened(self, found, lambda: (_drawn(self), {}))


def _drawn(source):
  """Dict split -> dict name -> array of the rows of a source."""
  d, num_tasks, p = source.num_features, source.num_tasks, source.correlation
  if num_tasks > d:
    raise errors.UserError(f'data.num_features={d}: {num_tasks} tasks need as many directions; nearest: '
                           f'data.num_features={num_tasks}')
  if len(source.positives) not in (0, num_tasks):
    raise errors.UserError(f'data.positives={source.positives}: there are {len(source.positives)} shares for '
                           f'{num_tasks} tasks; nearest: one for each, or ()')
  rng = np.random.default_rng(source.problem)
  u = np.linalg.qr(rng.normal(size=(d, num_tasks)))[0].T             # [K, d]
  w = source.scale * np.concatenate([u[:1], p * u[:1] + np.sqrt(1 - p ** 2) * u[1:]])
  a, b = rng.normal(size=(2, source.sines))
  count = source.num_rows + source.num_held_out
  x = rng.normal(size=(count, d))
  along = x @ w.T                                                    # [N, K]
  y = along + np.sin(along[..., None] * a + b).sum(-1) + source.noise * rng.normal(size=along.shape)
  train = y[:source.num_rows]
  if source.positives:
    limits = [np.quantile(column, 1 - share) for column, share in zip(train.T, source.positives)]
    values = y > limits
  else:
    values = (y - train.mean(0)) / np.where(train.std(0) > 0, train.std(0), 1)
  rows = dict(features=x.astype(np.float32), values=values.astype(np.float32),
              weights=np.ones(values.shape, np.float32))
  cut = lambda at: {name: array[at] for name, array in rows.items()}
  return dict(train=cut(np.s_[:source.num_rows]), validation=cut(np.s_[source.num_rows:]))
