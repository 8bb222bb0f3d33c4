"""Digits of everybody, and the same digits as one user writes them: turned."""

import dataclasses
import typing

import ml_collections
import numpy as np

from stmoe import errors
from stmoe import ranges
from stmoe.data import arrays
from stmoe.data import record as records

MEANT = dict(both=(0, 1), generic=(0,), user=(1,))     # what given/user may be


@dataclasses.dataclass(frozen=True, kw_only=True)
class CustomizedDigits:
  """Digits of scikit-learn (8 x 8 pixels from 0 to 1) as rows: features f32[rows,64], labels i32[rows,1].

  given/user i32[rows] is 1 for rows of the user, digits that are turned. given/stored i32[rows] is 1 for them
  and for as many generic rows, those that a device keeps to train a gate. Weights f32[rows,1] are 1. The rows
  of validation are other digits, each once plain and once turned.

  angle:        degrees of the user's digits, bilinear.
  num_user:     rows of the user in training.
  num_held_out: digits of validation.
  problem:      seed of which digits are which.
  eval_rows:    which rows evaluation covers: 'generic', 'user' or 'both'.
  cache_dir:    folder of caches; '' = $STMOE_CACHE_DIR, else ~/.cache/stmoe.
  """
  angle: ranges.Any = 30.0
  num_user: ranges.Count = 150
  num_held_out: ranges.Count = 500
  problem: ranges.Seed = 0
  eval_rows: ranges.Choice(*MEANT) = 'both'
  cache_dir: ranges.Text = ''

  kind, targets, files = 'customized_digits', 'labels', ()

  def content(self) -> dict:
    """Returns what says which data these are, for data.json."""
    fields = ('angle', 'num_user', 'num_held_out', 'problem')
    return {field: getattr(self, field) for field in fields}

  def shapes(self, rows: int) -> dict:
    """Returns dict name -> (shape, dtype) of a batch."""
    entries: dict = dict(features=((rows, 64), np.float32), labels=((rows, 1), np.int32))
    return entries | {'weights': ((rows, 1), np.float32), 'given/user': ((rows,), np.int32),
                      'given/stored': ((rows,), np.int32)}

  def lengths(self, model: typing.Any = None) -> dict:
    """Returns dict stack -> positions of a row: a row is one token."""
    return dict(encoder=1, decoder=1)

  def open(self, cfg: ml_collections.ConfigDict, found: records.Record = records.NONE) -> 'Opened':
    """Returns the rows; of a run's Record `found` if they are the same."""
    return Opened(self, found)


class Opened(arrays.Opened):
  """The rows, of which evaluation covers those that the source says."""

  def __init__(self, source: CustomizedDigits, found: records.Record):
    self._meant = MEANT[source.eval_rows]
    super().__init__(source, found, lambda: (_made(source), dict(num_classes=10)))

  def rows(self, name: str, split: str, seed: int, train: bool) -> arrays.Rows:
    """Returns the rows of a split."""
    whole = super().rows(name, split, seed, train).arrays
    meant = slice(None) if train else np.isin(whole['given/user'], self._meant)
    return arrays.Rows({entry: array[meant] for entry, array in whole.items()})


def _made(source):
  """Dict split -> dict name -> array of the rows of a source."""
  from scipy import ndimage
  from sklearn import datasets
  digits = datasets.load_digits()
  most = len(digits.target) - source.num_held_out
  if source.num_user > most or most < 1:
    raise errors.UserError(f'data.num_user={source.num_user}, data.num_held_out={source.num_held_out}: there '
                           f'are {len(digits.target)} digits; nearest: data.num_user={max(most, 1)}')
  rng = np.random.default_rng(source.problem)
  order = rng.permutation(len(digits.target))
  plain = (digits.images / 16).astype(np.float32)
  turned = ndimage.rotate(plain, source.angle, axes=(2, 1), reshape=False, order=1)
  held, train = order[:source.num_held_out], order[source.num_held_out:]
  ours, kept = train[:source.num_user], set(rng.permutation(train)[:source.num_user].tolist())

  def rows(generic, user, stored):
    images = np.concatenate([plain[generic], turned[user]]).reshape(-1, 64)
    mine = np.repeat([0, 1], [len(generic), len(user)])
    labels = digits.target[np.concatenate([generic, user])].astype(np.int32)[:, None]
    return {'features': images, 'labels': labels, 'weights': np.ones(labels.shape, np.float32),
            'given/user': mine.astype(np.int32), 'given/stored': stored.astype(np.int32)}
  stored = np.array([digit in kept for digit in train] + [True] * len(ours))
  return dict(train=rows(train, ours, stored), validation=rows(held, held, np.ones(2 * len(held), bool)))
