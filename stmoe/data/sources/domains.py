"""Domains: rows of images that are all of one domain, made of handwritten digits.

What is random in row i of a stream depends on the row's number and on the seed only.
"""

import dataclasses
import functools
import typing

import ml_collections
import numpy as np

from stmoe import errors
from stmoe import ranges
from stmoe.data import arrays
from stmoe.data import record as records
from stmoe.data.text import tasks

SIDE, CLASSES = 8, 10


def rotated(images: np.ndarray, angle: float, rng: np.random.Generator) -> np.ndarray:
  """Returns images [N,8,8] turned by `angle` degrees."""
  del rng
  from scipy import ndimage
  return ndimage.rotate(images, angle, axes=(2, 1), reshape=False, order=1)


def contrasted(images: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
  """Returns images [N,8,8] of values from 0 to 1, `factor` times as far from a half; below 0: negatives."""
  del rng
  return 0.5 + factor * (images - 0.5)


def noised(images: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
  """Returns images [N,8,8] with normal noise."""
  return images + deviation * rng.normal(size=images.shape)


CHANGES = dict(rotation=rotated, contrast=contrasted, noise=noised)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Domains:
  """A row is S images of one domain; the first n of them, the support, adapt a model and have no label.

  The images are the 1,797 digits of 8 x 8 that scikit-learn carries. Every fifth is held out; source domains
  are made of the others, held-out domains of those. Entries of a batch are
    features f32[rows,S,F], pixels from -1 to 1; labels i32[rows,S]
    weights f32[rows,S]: 1 of images that are judged. In training the support is not. In evaluation every
    image of a domain is judged once; the support of all rows of a domain is the same
    given/domain i32[rows], number of the row's domain: of the sources, or of what is held out.

  task:    'digits'.
  change:  what makes the domains: 'rotation' in degrees, 'contrast' as a factor, or 'noise' as a deviation.
  sources, held: of how much; a domain for each number. The order of the sources is random.
  size, support: S and n.
  binary:  labels are whether a digit is odd, 1 or 0.
  order_seed: of that order, by which groups of domains are made.
  cache_dir: folder of caches; '' = $STMOE_CACHE_DIR, else ~/.cache/stmoe.
  """
  task: ranges.Choice('digits') = 'digits'
  change: ranges.Choice(*CHANGES) = 'rotation'
  sources: ranges.Many(ranges.Any, least=1)
  held: ranges.Many(ranges.Any, least=1)
  size: ranges.Count
  support: ranges.Count
  binary: ranges.Flag = False
  order_seed: ranges.Natural = 0
  cache_dir: ranges.Text = ''

  kind = 'domains'
  targets = 'labels'                   # what a model must predict: a class of every image
  files = ()                           # of the user there are none

  def content(self) -> dict:
    """Returns what says which data these are, for data.json."""
    fields = ('task', 'change', 'sources', 'held', 'binary', 'order_seed')
    return {field: getattr(self, field) for field in fields}

  def shapes(self, rows: int) -> dict:
    """Returns dict name -> (shape, dtype) of a batch."""
    images = (rows, self.size)
    return {'features': ((*images, SIDE ** 2), np.float32), 'labels': (images, np.int32),
            'weights': (images, np.float32), 'given/domain': ((rows,), np.int32)}

  def lengths(self, model: typing.Any = None) -> dict:
    """Returns dict stack -> positions of a row: images.

    The student of a model that adapts sees the support once more in every step, forwards and backwards.
    """
    steps = model.get('inner_steps', 0) if model else 0
    return dict(encoder=self.size, decoder=self.size, student=self.size + 3 * steps * self.support)

  def fits(self, model: typing.Any, aux: dict) -> None:
    """Raises UserError for a model of other domains, or of another support."""
    for field, here, name in (('num_domains', len(self.sources), 'data.sources'),
                              ('support', self.support, 'data.support')):
      if getattr(model, field, here) != here:
        raise errors.UserError(f'model.{field}={getattr(model, field)}, and {name} is {here}; nearest: '
                               f'model.{field}={here}')

  def open(self, cfg: ml_collections.ConfigDict, found: records.Record = records.NONE) -> 'Opened':
    """Returns the domains; of a run's Record `found` if they are the same."""
    if self.support >= self.size:
      raise errors.UserError(f'data.support={self.support} of data.size={self.size} images leave none to '
                             f'judge; nearest: data.support={self.size - 1}')
    return Opened(self, found)


class Opened(arrays.Opened):
  """The opened domains; data/batches.py says what opened data need."""

  def __init__(self, source: Domains, found: records.Record):
    facts = dict(num_classes=1 if source.binary else CLASSES)
    super().__init__(source, found, lambda: (_made(source), facts), functools.partial(Rows, source=source))

  def rows(self, name: str, split: str, seed: int, train: bool) -> 'Rows':
    """Returns the Rows of a split; those of training are drawn by `seed`."""
    del name
    return self._rows(self._splits[split], seed=seed, train=train)


@dataclasses.dataclass(frozen=True)
class Rows:
  """The rows of a split: arrays features f32[K,N,F] of K domains, and labels i32[N]."""
  arrays: dict
  source: Domains
  seed: int = 0
  train: bool = False

  def __len__(self):
    return len(self.arrays['features']) * self.of_domain

  @property
  def of_domain(self) -> int:
    """The rows that it takes to judge every image of a domain."""
    left = len(self.arrays['labels']) - self.source.support
    return -(-left // (self.source.size - self.source.support))

  def fill(self, batch: dict[str, np.ndarray], at: int, row: int, number: int) -> None:
    """Writes row `row` into row `at` of `batch`; `number` decides which images a row of training has."""
    domain, part = divmod(row, self.of_domain)
    num_images, n = len(self.arrays['labels']), self.source.support
    if self.train:
      rng = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 0, number]))
      chosen, judged = rng.permutation(num_images)[:self.source.size], slice(n, None)
    else:
      rest = np.arange(n, num_images)[part * (self.source.size - n):][:self.source.size - n]
      chosen, judged = np.concatenate([np.arange(n), rest]), slice(n if part else 0, n + len(rest))
    batch['features'][at, :len(chosen)] = self.arrays['features'][domain, chosen]
    batch['labels'][at, :len(chosen)] = self.arrays['labels'][chosen]
    batch['weights'][at, judged] = 1
    batch['given/domain'][at] = domain


def _made(source):
  """Dict split -> dict name -> array of the domains of a source."""
  from sklearn import datasets
  digits = datasets.load_digits()
  labels = (digits.target % 2 if source.binary else digits.target).astype(np.int32)
  is_held, rng = np.arange(len(labels)) % 5 == 4, np.random.default_rng(source.order_seed)
  values = dict(train=rng.permutation(source.sources), validation=np.asarray(source.held))
  by_split = {}
  for split, chosen in zip(tasks.SPLITS, (~is_held, is_held)):
    if chosen.sum() < source.size:
      raise errors.UserError(f'data.size={source.size}, and a domain of the split {split!r} has '
                             f'{chosen.sum()} images; nearest: data.size={chosen.sum()}')
    make = CHANGES[source.change]
    images = [make(digits.images[chosen] / 16, float(value), rng) for value in values[split]]
    features = 2 * np.stack(images).reshape(len(images), -1, SIDE ** 2) - 1          # [K, N, F]
    by_split[split] = dict(features=features.astype(np.float32), labels=labels[chosen])
  return by_split
