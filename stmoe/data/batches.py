"""Batches for training and evaluation, from a source of data, as a function of their number.

The rows of a task are numbered; training takes them in a new random order every epoch (mixtures take
from each task in turn, by weight). Row i of step t is the row of global number t * batch_size + i.
What is random in a row depends on its global number and on `seed` only. So a stream may be resumed at any
step, and the shards of any number of processes are slices of the same batches.

Fields of `cfg.data` that are read here; all other fields are the source's:
  source: a module of data/sources; absent = the source that has data.objective.
  shuffle: False takes the rows in order.
  eval_split: the split that evaluation covers.

A source of data is a file of data/sources: a class called like the file, whose fields are those of section
`data`. It is made without reading any data, and says what batches look like. It has
  kind              what data.json calls such data
  content()         dict, for JSON: the values of fields that say which data they are
  shapes(rows)      dict name -> (shape, dtype) of a batch. The first axis counts rows. In what belongs to a
                    stack, STACK_NAME (encoder_..., decoder_...), the second counts tokens. Routers read by
                    NAME what is called given/NAME, of rows, or STACK_given/NAME, of tokens
                    (`contract.Context.known`). `group` and `part` i32[rows] are of rows that belong together,
                    users say, of whom evaluation speaks by themselves (targets/binary.py)
  lengths(model)    dict stack -> positions of a row in it, for counting operations: 'decoder' has the
                    targets. `model` is that section of the configuration, which may decide
  open(cfg, found)  the data, opened; the data of the Record `found` (record.py) if they are the same
  targets           the kind of what is to be predicted; absent = 'ids'
  vocabulary(found) its vocabulary; only of a source of texts or questions, which has a field `vocab`
  rule              the class of the objective; only of a source of texts
  fits(model, aux)  raises UserError for a model that the batches are not for; `aux` is dict layer -> Aux of
                    shapes; may be absent
and the opened data have
  keys, caches, weights   dict task -> what identifies its content; dict task -> path of its cache; those of
                          the mixture, alike
  files, metrics    the files of the user, as `record.seen` describes them; dict task -> names of its metrics
  vocabulary        of all tasks, or None
  recorded          whether all this is as the run's data.json says
  facts             dict, for data.json, of what later reading needs; may be absent
  rows(name, split, seed, train)  the rows of a task: a length, and fill(batch, at, row, number), which writes
                          a row into row `at` of a batch of zeros
  info()            see `info` below
  num_bytes(batch)  bytes of text that are scored in a batch, or None; may be absent
  judged()          see `judged` below; may be absent
  feed(seed_of, shuffle)  instead of the training rows of `rows`, the Feed of large/windows.py; may be absent
"""

import contextlib
import dataclasses
import functools
import hashlib
import sys

import grain
import numpy as np

from stmoe import errors
from stmoe import lookup
from stmoe.core import checked
from stmoe.data import record as records
from stmoe.data.text import tasks

AHEAD = 4  # batches made in the background


@dataclasses.dataclass(frozen=True)
class Batches:
  """Batch t of a list of rows. A sequence; as an iterator it has its batches made ahead in a thread.

  `order(n)` gives (rows, row, number) of global row n < `num_rows`. A last batch is filled up with
  empty rows (weight 0); `empty(size)` makes a batch of such rows. Only `shard` of `num_shards` equal slices
  of every batch is made.
  """
  order: callable
  num_rows: int
  empty: callable
  batch_size: int
  shard: int = 0
  num_shards: int = 1

  def __len__(self):
    return -(-self.num_rows // self.batch_size)

  def __getitem__(self, t):
    if not 0 <= t < len(self):
      raise IndexError(t)
    size = self.batch_size // self.num_shards
    start = t * self.batch_size + self.shard * size
    batch = self.empty(size)
    for at in range(min(size, self.num_rows - start)):
      rows, row, number = self.order(start + at)
      rows.fill(batch, at, row, number)
    return batch

  def __iter__(self):
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)
    return iter(grain.MapDataset.source(self).to_iter_dataset(options))


class Iterator:
  """The endless training batches; `get_state()` is a small dict for JSON that `set_state` takes.

  feed: the order of the rows of a corpus that is not held whole (large/windows.py), or None.
  """

  def __init__(self, batches, key, feed=None):
    self._batches, self._size = iter(batches), batches.batch_size
    self._key, self._feed = key, feed

  def __iter__(self):
    return self

  def __next__(self):
    return next(self._batches)

  def get_state(self):
    """Returns dict(step=batches taken, data=what identifies the text and its vocabulary).

    Of a corpus that is not held whole also `mark`: where its window begins.
    """
    step = self._batches.get_state()['next_index']
    mark = dict(mark=list(self._feed.mark(step * self._size))) if self._feed else {}
    return dict(step=step, data=self._key) | mark

  def set_state(self, state):
    """Goes on after `state['step']` batches; a state of other data is a UserError."""
    if state['data'] != self._key:
      raise errors.UserError(f'the data has changed: the checkpoint was trained on {state["data"]}, the '
                             f'configuration now gives {self._key} (other files, Python or vocabulary?)')
    if self._feed and 'mark' in state:
      self._feed.go(state['mark'])
    self._batches.set_state(dict(next_index=state['step']))

  def close(self):
    """Stops the thread that makes batches."""
    self._batches.close()
    if self._feed:
      self._feed.close()


def source(cfg, run=None):
  """Returns the opened data of a configuration.

  With `run`, a run directory, the data are as its data.json names them (record.py), if the configuration
  means the same. `notes` of the opened data are lines about what has changed since.
  """
  split = cfg.data.eval_split
  described = lookup.source(cfg.data)
  if split not in tasks.SPLITS:
    raise errors.UserError(f'data.eval_split={split!r}{errors.nearest(split, tasks.SPLITS)} '
                           f'(there are: {", ".join(tasks.SPLITS)})')
  record = records.read(run)
  opened = described.open(cfg, record)
  opened.notes = [*record.notes()] if opened.recorded or record.damage else []
  return opened


def shapes(source, rows):
  """Returns dict name -> (shape, dtype) of a batch of `rows` rows, as a source of data describes its batches.

  Raises UserError, with the source's file, where it describes something else.
  """
  described = source.shapes(rows)
  if not isinstance(described, dict):
    raise errors.UserError(f'{checked.file(source)}: shapes({rows}) returned {checked.told(described)}; '
                           'wanted: dict name -> (shape, dtype)')
  for name, entry in described.items():
    pair = isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], (tuple, list))
    if not pair or tuple(entry[0][:1]) != (rows,):
      raise errors.UserError(f'{checked.file(source)}: shapes({rows}) has {name}={entry!r}; wanted: (shape, '
                             f'dtype), the shape beginning with {rows}')
  return described


def empty(source, rows):
  """Returns a batch of zeros of `rows` rows, as a source of data describes its batches."""
  return {name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes(source, rows).items()}


def train_iterator(cfg, shard=0, num_shards=1, opened=None):
  """Returns the Iterator of training batches: dicts of arrays [train.batch_size / num_shards, ...].

  Args:
    opened: what `source` gives for `cfg`, where it is at hand; the same in the functions below.
  """
  opened = opened or source(cfg)
  size = _divided(cfg, 'train', num_shards)
  key = '+'.join(f'{name}-{key}' for name, key in opened.keys.items())
  seed_of = functools.partial(_seed, cfg.seed)
  feed = opened.feed(seed_of, cfg.data.shuffle) if hasattr(opened, 'feed') else None
  order = feed or _order(cfg, opened).__getitem__
  return Iterator(Batches(order, sys.maxsize, _empty(cfg), size, shard, num_shards), key, feed)


def beginning(cfg, opened):
  """Returns the position of the training batches before the first of them, see `Iterator.get_state`."""
  with contextlib.closing(train_iterator(cfg, opened=opened)) as batches:
    return batches.get_state()


def _order(cfg, opened):
  """The (rows, row, number) of all rows to come, of one task or in turn from several."""
  parts = []
  for name in opened.keys:
    rows = opened.rows(name, 'train', _seed(cfg.seed, 'draws', name), train=True)
    order = grain.MapDataset.range(len(rows))
    if cfg.data.shuffle:
      order = order.shuffle(seed=_seed(cfg.seed, 'order', name) % 2**32)
    parts.append(order.repeat(None).map_with_index(lambda number, row, rows=rows: (rows, row, number)))
  return parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, opened.weights)


def eval_batches(cfg, shard=0, num_shards=1, opened=None, most=0, keys=None):
  """Returns the Batches of the evaluation split: each row once, in order, unpacked, none random twice.

  There are at most `most` batches, 0 = all. Of a mixture they hold the first rows of every task, in
  proportion to its rows.
  keys: the tasks of a mixture that are meant; None = all.
  """
  opened = opened or source(cfg)
  parts = [opened.rows(name, cfg.data.eval_split, _seed('eval', name), train=False)
           for name in keys or opened.keys]
  size = _divided(cfg, 'eval', num_shards)
  ends = np.cumsum(_first([len(rows) for rows in parts], most * size))

  def order(n):
    part = int(np.searchsorted(ends, n, 'right'))
    row = n - int(ends[part - 1]) if part else n
    return parts[part], row, row
  return Batches(order, int(ends[-1]), _empty(cfg), size, shard, num_shards)


def _first(sizes, limit):
  """How many rows of each part make up `limit` (0 = all), in proportion to the parts' `sizes`.

  >>> _first([60, 30, 10], 20), _first([60, 30, 10], 0), _first([99, 1], 10)
  ([12, 6, 2], [60, 30, 10], [9, 1])
  """
  if not 0 < limit < sum(sizes):
    return sizes
  counts = []
  for number, size in enumerate(sizes):  # and leave at least one row of each part that is to come
    unfilled, rows_to_come = limit - sum(counts), len(sizes) - number - 1
    counts.append(max(min(unfilled * size // sum(sizes[number:]), unfilled - rows_to_come), 1))
  return counts


def info(cfg, opened=None):
  """Returns the facts of the data of a configuration.

  dict(vocab, with a `digest`; vocab_size; sources: facts of each task). Of text also num_bytes, num_tokens,
  num_documents, bytes_per_token and piece_bytes. With every token predicted, bits per byte = total nats over
  the split / ln 2 / num_bytes. Of images num_images of both splits, of questions num_questions of their
  domains, of other data num_rows of both splits. Of values that have names also `answers`: dict name ->
  (least, most) of the rows of training.
  """
  return (opened or source(cfg)).info()


def vocabulary(cfg, found=records.NONE):
  """Returns the vocabulary of a configuration: the run's own, if Record `found` has it.

  Raises UserError for data without a vocabulary.
  """
  return _of_text(cfg, 'vocabulary')(found)


def objective(cfg):
  """Returns the class of the objective of texts, see data/text/objectives; UserError for other data."""
  return _of_text(cfg, 'rule')


def judged(cfg, opened=None):
  """Returns (dict task -> examples.Judged, Rower) of a configuration of pairs, of tasks that have metrics.

  For questions (questions.py) the names are of domains, and the source itself takes the Rower's place.
  """
  opened = opened or source(cfg)
  if not hasattr(opened, 'judged'):
    raise errors.UserError(f'{lookup.titled(cfg.data)} has no examples to judge; eval.methods needs pairs of '
                           'texts, or questions')
  return opened.judged()


def _of_text(cfg, name):
  """The attribute `name` of a source of texts."""
  described = lookup.source(cfg.data)
  if not hasattr(described, name):
    raise errors.UserError(f'{lookup.titled(cfg.data)} are no texts, which this needs; what a model predicts '
                           'of other data: stmoe.open(RUN).logits(BATCH), in Python')
  return getattr(described, name)


def _empty(cfg):
  """The function of a number of rows that makes a batch without any row."""
  return functools.partial(empty, lookup.source(cfg.data))


def _seed(*parts):
  """Returns a seed below 2**64 that is the same on every machine."""
  return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], 'little')


def _divided(cfg, section, num_shards):
  size = cfg[section].batch_size
  if size % num_shards:
    raise errors.UserError(f'{section}.batch_size={size} is not a multiple of the {num_shards} data shards')
  return size
