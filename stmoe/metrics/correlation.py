"""Correlation of numbers that are written as texts, of STS-B."""

import math

import numpy as np


def score(examples, predictions):
  """Returns dict(pearson, spearman), -100 to 100; a text that is no finite number counts as -1, as in T5.

  Both are 0 where all targets or all predictions are the same.

  >>> one = lambda text: dict(references=[text])
  >>> score([one('1.0'), one('2.0'), one('3.0')], ['0.0', '0.2', '5.0'])['spearman']
  100.0
  """
  targets = np.array([number(example['references'][0]) for example in examples])
  said = np.array([number(text) for _, text in zip(examples, predictions, strict=True)])
  return dict(pearson=100.0 * pearson(targets, said), spearman=100.0 * pearson(ranks(targets), ranks(said)))


def number(text):
  """Returns the number that `text` is, -1.0 where it is none."""
  try:
    value = float(text)
  except ValueError:
    return -1.0
  return value if math.isfinite(value) else -1.0


def pearson(x, y):
  """Returns the linear correlation of f64[N] x and y, -1.0 to 1.0; 0.0 where one is constant."""
  if not (np.ptp(x) and np.ptp(y)):
    return 0.0
  x, y = (values / np.abs(values).max() for values in (x, y))          # sums of large numbers stay finite
  x, y = x - x.mean(), y - y.mean()
  return float(np.clip(x @ y / math.sqrt((x @ x) * (y @ y)), -1.0, 1.0))


def ranks(x):
  """Returns f64[N], the place of each of f64[N] x in order; equal ones share their mean place."""
  _, group, counts = np.unique(x, return_inverse=True, return_counts=True)
  last = np.cumsum(counts)
  return (last - (counts - 1) / 2)[group]
