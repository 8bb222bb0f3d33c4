"""Batches for training and evaluation, from the caches, as a function of their number.

The rows of a task are numbered; training takes them in a new random order every epoch (mixtures take
from each task in turn, by weight). Row i of step t is the row of global number t * batch_size + i,
and what is random in it depends on that number and on `seed` only. So a stream may be resumed at any
step, and the shards of any number of processes are slices of the same batches.

Fields of `cfg.data`:
  task, files: a task of families/, and the files of tasks text and pairs.
  jsonl: files of a task with metrics, in the format its set is released in, or one folder of them: training
    and validation; empty = TensorFlow Datasets.
  mixture: instead of task: {task: weight}, or pairs of them, or names alone: then the weight of each is its
    number of training examples, but no more than mixture_cap; empty for none.
  metrics: instead of the task's own (modules of stmoe/metrics); empty for these.
  vocab, extra_ids, cache_dir: see cache.py ('' = the default folder).
  objective: lm, span_corruption, prefix_lm, seq2seq, prompted (objectives.py).
  length: row length (lm, prefix_lm, prompted); inputs_length, targets_length: row lengths (the other two).
  noise_density, mean_span_length: of span_corruption, where they are not T5's 0.15 and 3.0.
  loss_from: share of a row of targets: those at the first ceil(loss_from * length) positions of every
    segment have loss weight 0, in training and evaluation; absent = 0.0. For models that are only to be
    judged, or only causal, after a prefix, and for others that are compared with them.
  replaced, eval_replaced: share of the tokens of the text that are others, in training and in evaluation, of
    inputs and targets alike (swap.py); absent = 0.0. Examples that are judged stay as they are.
  join: True cuts the joined documents every `segment` tokens (one segment a row: attention and
    positions run across documents, whose ends EOS marks); False cuts each document by itself.
    Pairs (seq2seq, prompted) are never joined.
  pack: True puts several short segments into one row for training (never for evaluation); a row of
    joined documents is full anyway.
  shuffle: False takes the rows in order.
  eval_split: the split that evaluation covers.

Images with labels are the objective classification, questions with their answer in a text the objective
spans; vision.py and spans.py say what their fields are.
"""

import dataclasses
import hashlib
import math
import sys

import grain
import numpy as np

from stmoe import errors
from stmoe.data import cache as caches
from stmoe.data import objectives
from stmoe.data import pack
from stmoe.data import spans
from stmoe.data import stream as streams
from stmoe.data import swap
from stmoe.data import tasks
from stmoe.data import vision

OBJECTIVES = {
    'lm': lambda d, vocabulary: objectives.Lm(d.length),
    'prefix_lm': lambda d, vocabulary: objectives.PrefixLm(d.length),
    'span_corruption': lambda d, vocabulary: objectives.SpanCorruption(
        d.inputs_length, d.targets_length, vocabulary, d.get('noise_density', 0.15),
        d.get('mean_span_length', 3.0)),
    'prompted': lambda d, vocabulary: objectives.Prompted(d.length, vocabulary),
    'seq2seq': lambda d, vocabulary: objectives.Seq2Seq(d.inputs_length, d.targets_length, vocabulary),
}
# Where the rows of other objectives come from than `Texts`.
SOURCES = {'classification': vision.Images, 'spans': spans.Spans}
AHEAD = 4  # batches made in the background


@dataclasses.dataclass(frozen=True)
class Rows:
  """The rows of one task and split: segments of a stream, or packs of them."""
  stream: streams.Stream
  segments: np.ndarray  # i64[n,2]
  packs: list | None
  objective: object
  seed: int
  unscored: int  # first targets of a segment without loss
  replaced: float = 0.0  # share of the tokens
  eos: int = 0
  start: int = 0                       # id before the first token of a segment

  def __len__(self):
    return len(self.segments) if self.packs is None else len(self.packs)

  def fill(self, batch, at, row, number):
    """Writes row `row` into row `at` of `batch`; `number` decides what is random in it."""
    rng = None
    if self.objective.random:
      rng = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 0, number]))
    chosen = [row] if self.packs is None else self.packs[row]
    texts = [self.stream.read(*self.segments[i]) for i in chosen]
    if self.replaced:                    # draws of its own: the objective's stay the same
      noise = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 1, number]))
      texts = [swap.swap(tokens, self.replaced, self.eos, noise) for tokens in texts]
    examples = [self.objective.example(tokens, rng) for tokens in texts]
    pack.fill(batch, at, examples, self.unscored, self.start)


@dataclasses.dataclass(frozen=True)
class Batches:
  """Batch t of a list of rows; a sequence, and iterable with the batches made ahead in a thread.

  `order(n)` gives (rows, row, number) of global row n < `num_rows`; a last batch is filled up with
  empty rows (weight 0), of which `empty(size)` makes a batch. `shard` of `num_shards` equal slices of
  every batch is made.
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
  """The endless training batches; `get_state()` is a small dict for JSON that `set_state` takes."""

  def __init__(self, batches, key):
    self._batches = iter(batches)
    self._key = key

  def __iter__(self):
    return self

  def __next__(self):
    return next(self._batches)

  def get_state(self):
    """Returns dict(step=batches taken, data=what identifies the text and its vocabulary)."""
    return dict(step=self._batches.get_state()['next_index'], data=self._key)

  def set_state(self, state):
    """Goes on after `state['step']` batches; a state of other data is a UserError."""
    if state['data'] != self._key:
      raise errors.UserError(f'the data has changed: the checkpoint was trained on {state["data"]}, the '
                             f'configuration now gives {self._key} (other files, Python or vocabulary?)')
    self._batches.set_state(dict(next_index=state['step']))

  def close(self):
    """Stops the thread that makes batches."""
    self._batches.close()


class Texts:
  """The rows of tasks of text: what `train_iterator`, `eval_batches` and `info` need of a kind of data.

  keys: dict task -> what identifies its text and vocabulary; weights: those of the mixture, alike.
  """

  def __init__(self, cfg):
    self._data, self._found = cfg.data, open_caches(cfg)
    self._start = _start(cfg)
    self._objective = _objective(cfg, self._found)
    self.keys = {name: cache.key for name, cache in self._found.items()}
    self.weights = [weight or _size(self._found[name], cfg.data.mixture_cap) for name, weight in mixture(cfg)]

  def rows(self, name, split, seed, train):
    """Returns the Rows of a task; `train` packs them, where the configuration says so."""
    data, objective, cache = self._data, self._objective, self._found[name]
    stream = streams.Stream(cache, split, objective.eos)
    if objective.paired:
      if data.join or not cache.facts.get('paired'):
        raise errors.UserError(f'data.objective={data.objective!r} takes pairs one by one: it needs '
                               f'data.join=False (now {data.join}) and a task of pairs (now '
                               f'{cache.facts["task"]}; nearest: pairs, jsonl)')
      segments, sizes = streams.pairs(stream)
    else:
      segments = streams.segments(stream, objective.segment, data.join)
      sizes = segments[:, 1] - segments[:, 0]
    packs = None
    if train and data.pack and not data.join:
      packs = pack.plan(objective.lengths(sizes), list(objective.limits.values()))
    field = 'replaced' if train else 'eval_replaced'
    return Rows(stream, segments, packs, objective, seed, _unscored(data, objective.limits['decoder']),
                swap.checked(field, data.get(field, 0.0)), cache.vocabulary.eos_id, self._start)

  def empty(self, size):
    """Returns a batch of `size` rows without tokens."""
    return pack.empty(self._objective.limits, size, self._objective.prefix)

  def info(self):
    """Returns the facts of the text; see `info` below."""
    found = list(self._found.values())
    sizes = [cache.facts['splits'][self._data.eval_split] for cache in found]
    total = lambda key: sum(size[key] for size in sizes)
    num_bytes, num_tokens, documents = total('bytes'), total('tokens'), total('documents')
    return dict(vocab=found[0].vocabulary, vocab_size=found[0].vocabulary.vocab_size, num_bytes=num_bytes,
                num_tokens=num_tokens, num_documents=documents, bytes_per_token=num_bytes / num_tokens,
                sources=[cache.facts for cache in found])


def train_iterator(cfg, shard=0, num_shards=1):
  """Returns the Iterator of training batches: dicts of arrays [train.batch_size / num_shards, ...]."""
  source, parts = _source(cfg), []
  for name in source.keys:
    rows = source.rows(name, 'train', _seed(cfg.seed, 'draws', name), train=True)
    order = grain.MapDataset.range(len(rows))
    if cfg.data.shuffle:
      order = order.shuffle(seed=_seed(cfg.seed, 'order', name) % 2**32)
    parts.append(order.repeat(None).map_with_index(lambda number, row, rows=rows: (rows, row, number)))
  order = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, source.weights)
  size = _divided(cfg, 'train', num_shards)
  batches = Batches(order.__getitem__, sys.maxsize, source.empty, size, shard, num_shards)
  return Iterator(batches, '+'.join(f'{name}-{key}' for name, key in source.keys.items()))


def eval_batches(cfg, shard=0, num_shards=1):
  """Returns the Batches of the evaluation split: each row once, in order, unpacked, none random twice."""
  source = _source(cfg)
  parts = [source.rows(name, cfg.data.eval_split, _seed('eval', name), train=False) for name in source.keys]
  ends = np.cumsum([len(rows) for rows in parts])

  def order(n):
    part = int(np.searchsorted(ends, n, 'right'))
    row = n - int(ends[part - 1]) if part else n
    return parts[part], row, row
  return Batches(order, int(ends[-1]), source.empty, _divided(cfg, 'eval', num_shards), shard, num_shards)


def info(cfg):
  """Returns the facts of the data of a configuration.

  dict(vocab, with a `digest`; vocab_size; sources: facts of each task). Of text also num_bytes,
  num_tokens, num_documents of the evaluation split, EOS counted among the tokens, not the bytes, and
  bytes_per_token = num_bytes / num_tokens: with objective lm, bits per byte = total nats over the
  split / ln 2 / num_bytes. Of images num_images of both splits, of questions num_questions of their domains.
  """
  return _source(cfg).info()


def mixture(cfg):
  """Returns the (task name, weight) pairs of a configuration, sorted by name; weight None = by its size."""
  given = cfg.data.mixture
  if given and not hasattr(given, 'items') and all(isinstance(name, str) for name in given):
    if cfg.data.get('mixture_cap', 0) < 1:
      raise errors.UserError(f'data.mixture={", ".join(given)} are names without weights; they need '
                             'data.mixture_cap, the most examples that count (T5: 65536)')
    return tuple((name, None) for name in sorted(given))
  pairs = tuple(sorted(given.items() if hasattr(given, 'items') else given or ()))
  for name, weight in pairs:
    if not weight > 0:
      raise errors.UserError(f'data.mixture: the weight of {name} is {weight}; it must be above 0')
  return pairs or ((cfg.data.task, 1.0),)


def _size(cache, cap):
  """The training examples of a task, at most `cap`."""
  documents = cache.facts['splits']['train']['documents']
  return float(min(documents // (2 if cache.facts.get('paired') else 1), cap))


def of_config(cfg):
  """Returns the list of Tasks of a configuration."""
  d = cfg.data
  if d.objective in SOURCES:
    return SOURCES[d.objective].tasks(cfg)
  files = tuple(d.get('jsonl', ())) or d.files
  own = lambda name: files if name in tasks.OWN_FILES or d.get('jsonl') or not d.mixture else ()
  return [tasks.get(name, own(name), d.get('metrics', ())) for name, _ in mixture(cfg)]


def vocabulary(cfg, among=None):
  """Returns the vocabulary of a configuration, whose tasks `among` are if they are at hand."""
  d = cfg.data
  among = among or (of_config(cfg) if d.vocab.startswith('train:') else ())
  return caches.vocabulary_of(d.vocab, among, d.extra_ids, d.cache_dir)


def open_caches(cfg):
  """Returns {task name: Cache} of a configuration, all with one vocabulary; makes what is missing."""
  among = of_config(cfg)
  found = vocabulary(cfg, among)
  return {task.name: caches.of(task, found, cfg.data.cache_dir) for task in among}


@dataclasses.dataclass(frozen=True)
class Judged:
  """The examples, of its validation split, on which a task is judged, and the names of its metrics."""
  examples: list
  metrics: tuple


def judged(cfg):
  """Returns (dict task name -> Judged, Rower) of a configuration of pairs, of tasks that have metrics.

  Of questions (spans.py) the names are of domains, and the source itself is in the place of the Rower.
  """
  source = SOURCES.get(cfg.data.objective)
  if hasattr(source, 'judged'):
    rower = source(cfg)
    return {name: Judged(these, ('squad',)) for name, these in rower.judged().items()}, rower
  found, tasks_of = open_caches(cfg), {task.name: task for task in of_config(cfg)}
  objective = _objective(cfg, found)
  if not objective.paired:
    raise errors.UserError(f'data.objective={cfg.data.objective!r} has no examples to judge; eval.methods '
                           'needs seq2seq or prompted')
  known = {name: Judged(caches.records(cache), task.metrics) for name, cache in found.items()
           if (task := tasks_of[name]).metrics}
  return known, Rower(objective, next(iter(found.values())).vocabulary, _start(cfg))


@dataclasses.dataclass(frozen=True)
class Rower:
  """Makes rows of texts, as evaluation has them: one pair a row."""
  objective: object
  vocabulary: object
  start: int = 0                       # id before the first token of a target

  def batch(self, pairs, size):
    """Returns a batch of `size` rows with the (inputs, targets) `pairs`, at most so many, and empty rows."""
    batch = pack.empty(self.objective.limits, size)
    eos = np.asarray([self.vocabulary.eos_id], np.int32)
    ids = self.vocabulary.encode([text for pair in pairs for text in pair])
    for at in range(len(pairs)):
      tokens = np.concatenate([ids[2 * at], eos, ids[2 * at + 1], eos])
      pack.fill(batch, at, [self.objective.example(tokens, None)], start=self.start)
    return batch


def _source(cfg):
  name, split, known = cfg.data.objective, cfg.data.eval_split, (*OBJECTIVES, *SOURCES)
  if name not in known:
    raise errors.UserError(f'data.objective: none is called {name!r}{errors.nearest(name, known)} '
                           f'(there are: {", ".join(known)})')
  if split not in tasks.SPLITS:
    raise errors.UserError(f'data.eval_split={split!r}{errors.nearest(split, tasks.SPLITS)} '
                           f'(there are: {", ".join(tasks.SPLITS)})')
  return SOURCES.get(name, Texts)(cfg)


def _objective(cfg, found):
  return OBJECTIVES[cfg.data.objective](cfg.data, next(iter(found.values())).vocabulary)


def _start(cfg):
  """The id that the first token of a text follows, the model's own."""
  return cfg.model.get('start_id', 0) if 'model' in cfg else 0


def _unscored(data, length):
  share = data.get('loss_from', 0.0)
  if not 0 <= share < 1:
    raise errors.UserError(f'data.loss_from={share} is a share of the row: at least 0.0 and below 1.0')
  return math.ceil(share * length)


def _seed(*parts):
  """Returns a seed below 2**64 that is the same on every machine."""
  return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], 'little')


def _divided(cfg, section, num_shards):
  size = cfg[section].batch_size
  if size % num_shards:
    raise errors.UserError(f'{section}.batch_size={size} is not a multiple of the {num_shards} data shards')
  return size
