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
from stmoe.data import record as records
from stmoe.data.sources import images as vision
from stmoe.data.sources import spans
from stmoe.data.text import cache as caches
from stmoe.data.text import examples
from stmoe.data.text import objectives
from stmoe.data.text import pack
from stmoe.data.text import stream as streams
from stmoe.data.text import swap
from stmoe.data.text import tasks

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
  """The rows of tasks of text. What is needed of a kind of data, which SOURCES has others of:

  keys:     dict task -> what identifies its text and vocabulary; weights: those of the mixture, alike.
  caches:   dict task -> path of its cache; files: of the user, as `record.seen` describes them.
  metrics:  dict task -> names of its metrics; vocabulary: of all tasks.
  recorded: whether all this is as the run's data.json says; kind: what data.json calls such data.
  """

  kind = 'text'

  def __init__(self, cfg, found=records.NONE):
    self._data, known = cfg.data, found.known(cfg.data, self.kind)
    self._start = _start(cfg)
    self.recorded = bool(known)
    if known:
      self.vocabulary = vocabulary(cfg, found=found)
      self._caches = {name: _recorded(cfg, found, name, self.vocabulary) for name in known}
      self.files, self.metrics = found.values['files'], found.values['metrics']
    else:
      among = of_config(cfg)
      self.files = records.seen(file for task in among for file in task.facts.get('files', ()))
      self.vocabulary = vocabulary(cfg, among, found)
      self._caches = {task.name: caches.of(task, self.vocabulary, cfg.data.cache_dir) for task in among}
      self.metrics = {task.name: list(task.metrics) for task in among}
    self._objective = OBJECTIVES[cfg.data.objective](cfg.data, self.vocabulary)
    self.keys = {name: cache.key for name, cache in self._caches.items()}
    self.caches = {name: cache.path for name, cache in self._caches.items()}
    self.weights = [weight or _size(self._caches[name], cfg.data.mixture_cap)
                    for name, weight in mixture(cfg)]

  def rows(self, name, split, seed, train):
    """Returns the Rows of a task; `train` packs them, where the configuration says so."""
    data, objective, cache = self._data, self._objective, self._caches[name]
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
    found = list(self._caches.values())
    sizes = [cache.facts['splits'][self._data.eval_split] for cache in found]
    total = lambda key: sum(size[key] for size in sizes)
    num_bytes, num_tokens, documents = total('bytes'), total('tokens'), total('documents')
    return dict(vocab=self.vocabulary, vocab_size=self.vocabulary.vocab_size, num_bytes=num_bytes,
                num_tokens=num_tokens, num_documents=documents, bytes_per_token=num_bytes / num_tokens,
                piece_bytes=total('piece_bytes'),
                sources=[cache.facts for cache in found])


  def judged(self):
    """Returns (dict task -> examples.Judged of the tasks that have metrics, the Rower of their examples)."""
    if not self._objective.paired:
      raise errors.UserError(f'data.objective={self._data.objective!r} has no examples to judge; '
                             'eval.methods needs seq2seq or prompted')
    metrics = {name: tuple(self._data.get('metrics', ()) or these) for name, these in self.metrics.items()}
    known = {name: examples.Judged(caches.records(cache), metrics[name])
             for name, cache in self._caches.items() if metrics[name]}
    return known, Rower(self._objective, self.vocabulary, self._start)


def source(cfg, run=None):
  """Returns the opened data of a configuration: a `Texts`, or what SOURCES has for its objective.

  With `run`, a run directory, they are those that its data.json names (record.py), if the configuration
  means the same; `notes` of the source are lines about what has changed since.
  """
  name, split, known = cfg.data.objective, cfg.data.eval_split, (*OBJECTIVES, *SOURCES)
  if name not in known:
    raise errors.UserError(f'data.objective: none is called {name!r}{errors.nearest(name, known)} '
                           f'(there are: {", ".join(known)})')
  if split not in tasks.SPLITS:
    raise errors.UserError(f'data.eval_split={split!r}{errors.nearest(split, tasks.SPLITS)} '
                           f'(there are: {", ".join(tasks.SPLITS)})')
  found = records.read(run)
  opened = SOURCES.get(name, Texts)(cfg, found)
  opened.notes = [*found.notes()] if opened.recorded or found.damage else []
  return opened


def train_iterator(cfg, shard=0, num_shards=1, opened=None):
  """Returns the Iterator of training batches: dicts of arrays [train.batch_size / num_shards, ...].

  Args:
    opened: what `source` gives for `cfg`, where it is at hand; so in the functions below.
  """
  opened, parts = opened or source(cfg), []
  for name in opened.keys:
    rows = opened.rows(name, 'train', _seed(cfg.seed, 'draws', name), train=True)
    order = grain.MapDataset.range(len(rows))
    if cfg.data.shuffle:
      order = order.shuffle(seed=_seed(cfg.seed, 'order', name) % 2**32)
    parts.append(order.repeat(None).map_with_index(lambda number, row, rows=rows: (rows, row, number)))
  order = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, opened.weights)
  size = _divided(cfg, 'train', num_shards)
  batches = Batches(order.__getitem__, sys.maxsize, opened.empty, size, shard, num_shards)
  return Iterator(batches, '+'.join(f'{name}-{key}' for name, key in opened.keys.items()))


def eval_batches(cfg, shard=0, num_shards=1, opened=None, most=0):
  """Returns the Batches of the evaluation split: each row once, in order, unpacked, none random twice.

  At `most` so many batches, 0 = all: of a mixture the first rows of every task, in proportion to its rows.
  """
  opened = opened or source(cfg)
  parts = [opened.rows(name, cfg.data.eval_split, _seed('eval', name), train=False) for name in opened.keys]
  size = _divided(cfg, 'eval', num_shards)
  ends = np.cumsum(_first([len(rows) for rows in parts], most * size))

  def order(n):
    part = int(np.searchsorted(ends, n, 'right'))
    row = n - int(ends[part - 1]) if part else n
    return parts[part], row, row
  return Batches(order, int(ends[-1]), opened.empty, size, shard, num_shards)


def _first(sizes, limit):
  """How many rows of each of parts with `sizes` rows make up `limit` (0 = all), in proportion.

  >>> _first([60, 30, 10], 20), _first([60, 30, 10], 0), _first([99, 1], 10)
  ([12, 6, 2], [60, 30, 10], [9, 1])
  """
  if not 0 < limit < sum(sizes):
    return sizes
  taken = []
  for number, size in enumerate(sizes):  # and leave at least one row of each that is to come
    left, later = limit - sum(taken), len(sizes) - number - 1
    taken.append(max(min(left * size // sum(sizes[number:]), left - later), 1))
  return taken


def info(cfg, opened=None):
  """Returns the facts of the data of a configuration.

  dict(vocab, with a `digest`; vocab_size; sources: facts of each task). Of text also num_bytes,
  num_tokens, num_documents of the evaluation split, EOS counted among the tokens, not the bytes, and
  bytes_per_token = num_bytes / num_tokens: with objective lm, bits per byte = total nats over the
  split / ln 2 / num_bytes; and piece_bytes, those of the vocabulary's pieces, which are num_bytes
  unless the vocabulary rewrites text. Of images num_images of both splits, of questions num_questions
  of their domains.
  """
  return (opened or source(cfg)).info()


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


def kind(cfg):
  """Returns what data.json calls the kind of data of a configuration."""
  return SOURCES.get(cfg.data.objective, Texts).kind


def vocabulary(cfg, among=None, found=records.NONE):
  """Returns the vocabulary of a configuration, the run's own if it is in Record `found`.

  among: its tasks, if they are at hand.
  """
  d = cfg.data

  def make():
    tasks_of = among or (of_config(cfg) if d.vocab.startswith('train:') else ())
    return caches.vocabulary_of(d.vocab, tasks_of, d.extra_ids, d.cache_dir)
  return found.vocabulary(d, kind(cfg), make)


def open_caches(cfg):
  """Returns {task name: Cache} of a configuration, all with one vocabulary; makes what is missing."""
  among = of_config(cfg)
  found = vocabulary(cfg, among)
  return {task.name: caches.of(task, found, cfg.data.cache_dir) for task in among}


def _recorded(cfg, found, name, vocabulary):
  """The Cache of task `name` that Record `found` names; made again if it is gone or damaged."""
  try:
    path, facts = found.open(name, cfg.data, Texts.kind)
    return caches.Cache(path, vocabulary, facts)
  except errors.Damaged as damage:
    task = lambda: next(task for task in of_config(cfg) if task.name == name)
    make = lambda: caches.of(task(), vocabulary, cfg.data.cache_dir)
    return found.again(name, damage, make)


def judged(cfg, opened=None):
  """Returns (dict task -> examples.Judged, Rower) of a configuration of pairs, of tasks that have metrics.

  Of questions (spans.py) the names are of domains, and the source itself is in the place of the Rower.
  """
  return (opened or source(cfg)).judged()


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
