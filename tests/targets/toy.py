"""A source of numbers and a target, as files that a test puts on the paths of their packages."""

import contextlib

from tests.train import tiny_run

# A row has features [F], or [K,F] of K items, and values [n] or [K] of some weight; every fifth is held out.
SOURCE = '''"""Features, and values that a hidden matrix makes of them."""
import dataclasses
import numpy as np
from stmoe import ranges
from stmoe.data import record as records

@dataclasses.dataclass(frozen=True)
class Numbers:
  vocab_size: int = 0
  digest: str = 'numbers'

@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy:
  num_values: ranges.Count
  items: ranges.Flag = False
  yes: ranges.Flag = False
  kind, targets = 'toy', 'values'

  def content(self):
    return dataclasses.asdict(self)

  def shapes(self, rows):
    each = (rows, self.num_values)
    features = (*each, 6) if self.items else (rows, 6)
    return dict(features=(features, np.float32), values=(each, np.float32), weights=(each, np.float32))

  def lengths(self, model):
    return dict(decoder=1)

  def open(self, cfg, found=records.NONE):
    return Opened(self)

class Opened:
  recorded, vocabulary, files, metrics, caches = False, None, [], {}, {}
  keys, weights = dict(toy='1'), [1.0]

  def __init__(self, source):
    rng = np.random.default_rng(0)
    shapes = {name: shape for name, (shape, _) in source.shapes(80).items()}
    x = rng.normal(size=shapes['features'])
    hidden = rng.normal(size=(6, 1 if source.items else source.num_values))
    y = np.tanh(x @ hidden).reshape(shapes['values'])
    weights = rng.choice([0.0, 0.5, 1.0], shapes['values'])
    weights[::7] = 0
    self._all = dict(features=x, values=(y > 0) if source.yes else y, weights=weights)

  def rows(self, name, split, seed, train):
    held_out = np.arange(80) % 5 == 4
    return Rows({name: x[held_out != train] for name, x in self._all.items()})

  def info(self):
    return dict(vocab=Numbers(), vocab_size=0, sources=[])

@dataclasses.dataclass(frozen=True)
class Rows:
  arrays: dict

  def __len__(self):
    return len(self.arrays['values'])

  def fill(self, batch, at, row, number):
    for name, x in self.arrays.items():
      batch[name][at] = x[row]
'''

TARGET = '''"""The Huber loss."""
import jax.numpy as jnp
from stmoe import ranges
from stmoe import targets

class Huber:
  kinds, passes, run = ('values',), 1, ''
  measures = {'loss/huber': targets.Measure('Huber loss'),
              'eval/loss': targets.Measure('Huber loss', said='{:.3f}'),
              'eval/within': targets.Measure('', 'higher')}

  def __init__(self, *, delta: ranges.Positive = 1.0):
    self.delta = delta

  def weights(self, batch):
    return batch['weights']

  def counts(self, batch):
    return jnp.maximum(jnp.sum(batch['weights']), 1e-6)

  def judge(self, outputs, batch):
    off = jnp.abs(outputs - batch['values'])
    each = jnp.where(off < self.delta, 0.5 * off ** 2, self.delta * (off - 0.5 * self.delta))
    total = lambda x: jnp.sum(batch['weights'] * x)
    return dict(huber=total(each), within=total(off < self.delta))

  def loss(self, outputs, batch, counts):
    mean = self.judge(outputs, batch)['huber'] / counts
    return mean, {'loss/huber': mean}

  def metrics(self, totals):
    return {name: totals[key] / totals['weight']
            for name, key in {'eval/loss': 'huber', 'eval/within': 'within'}.items()}
'''


@contextlib.contextmanager
def files(folder):
  """Context in which the source `toy` and the target `huber` are files beside the others."""
  import stmoe.data.sources
  import stmoe.targets
  kept = [(package, package.__path__) for package in (stmoe.data.sources, stmoe.targets)]
  for (package, path), (name, text) in zip(kept, (('toy', SOURCE), ('huber', TARGET))):
    (folder / name).mkdir(exist_ok=True)
    (folder / name / f'{name}.py').write_text(text)
    package.__path__ = [*path, str(folder / name)]
  yield
  for package, path in kept:
    package.__path__ = path


def config(corpus, loss, num_values=3, **changed):
  """Returns the ConfigDict of a sparse model of numbers with section `loss`; `changed` as in `tiny_run`."""
  data = dict(source='toy', num_values=num_values, items=loss['name'] == 'ranking',
              yes=loss['name'] == 'binary', shuffle=True, eval_split='validation')
  model = dict(name='mlp', num_features=6, num_outputs=1 if data['items'] else num_values, d_model=8,
               layers=(('m', 1),))
  return tiny_run.config(corpus, **{
      'model': model, 'data': data, 'loss': loss, 'blocks.m.router.jitter': 0.0, 'blocks.m.experts.d_ff': 8,
      'blocks.m.group_size': 2 if not data['items'] else None, 'train.batch_size': 32, 'train.steps': 4,
      'train.stats_every': 4, 'eval.every': 4, 'eval.batches': 0, 'eval.batch_size': 32,
      'checkpoint.every': 2} | changed)
