"""Texts, and pairs of texts, as rows of ids: of a task, of files or of a mixture of tasks."""

import dataclasses
import typing

import ml_collections
import numpy as np

from stmoe import errors
from stmoe import ranges
from stmoe.data import record as records
from stmoe.data.large import chunks
from stmoe.data.large import corpora
from stmoe.data.large import maker
from stmoe.data.large import sharded
from stmoe.data.large import windows
from stmoe.data.large import shard_process
from stmoe.data.text import cache as caches
from stmoe.data.text import examples
from stmoe.data.text import pack
from stmoe.data.text import stream as streams
from stmoe.data.text import swap
from stmoe.data.text import tasks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
  """Rows of the tokens of documents, cut and packed as an objective of text/objectives needs them.

  objective: lm, span_corruption, prefix_lm, seq2seq, prompted, ..., with fields of its own: row lengths.
  task, files: a task of families/, and the files of tasks text and pairs.
  field: of a row of JSON lines or Parquet, which holds its text; empty = `text`.
  documents: what a document of a file of text is: file, line, paragraph, or the text that stands between two
    (`\\n` is a line end); empty = file. A row of JSON lines or Parquet is a document.
  jsonl: files of a task with metrics, in the format its set is released in, or a folder of such files: of
    training and of validation; empty = TensorFlow Datasets.
  cache: `whole`: the tokens of all documents are written once, before training. `shards`: of a corpus of any
    size, in folders, by several processes, while training goes on. `stream`: nothing is written. The last two
    give the same batches; see data/large/windows.py. They take one task, not one of pairs.
  shard_mb: millions of bytes of text in a shard, or in a window that is streamed. Rows are mixed within it.
  mixture: instead of task: {task: weight}, or pairs of them, or names alone. With names alone the weight of
    each is its number n of training examples, but no more than mixture_cap, to the power of 1 /
    mixture_temperature; empty for none.
  metrics: instead of the task's own (modules of stmoe/metrics); empty = the task's own.
  vocab, extra_ids, cache_dir: see cache.py ('' = the default folder).
  loss_from: share of a row of targets without loss. Targets at the first ceil(loss_from * length) positions
    of every segment have loss weight 0, in training and evaluation. This is for models that are only to be
    judged, or only causal, after a prefix, and for other models that are compared with them.
  replaced, eval_replaced: share of the tokens of the text that are replaced by others, in training and in
    evaluation, in inputs and targets alike (swap.py). Examples that are judged stay as they are.
  join: True cuts the joined documents every `segment` tokens (one segment a row: attention and
    positions run across documents, whose ends EOS marks); False cuts each document by itself.
    Pairs (seq2seq, prompted) are never joined.
  pack: True puts several short segments into one row for training (never for evaluation); a row of
    joined documents is full anyway.
  eval_split: the split that evaluation covers.
  """
  objective: ranges.Chosen('objective')
  task: ranges.Text
  files: ranges.Many(ranges.Text)
  vocab: ranges.Text
  extra_ids: ranges.Natural
  join: ranges.Flag
  pack: ranges.Flag
  mixture: ranges.Shares
  eval_split: ranges.Text
  cache_dir: ranges.Text
  mixture_cap: ranges.Count | None = None
  mixture_temperature: ranges.AtLeast1 = 1.0
  field: ranges.Text = ''
  documents: ranges.Text = ''
  cache: ranges.Choice('whole', 'shards', 'stream') = 'whole'
  shard_mb: ranges.Positive = 64.0
  jsonl: ranges.Many(ranges.Text) = ()
  metrics: ranges.Many(ranges.Text) = ()
  loss_from: ranges.Below1 = 0.0
  replaced: ranges.Share = 0.0
  eval_replaced: ranges.Share = 0.0

  kind = 'text'

  @property
  def rule(self) -> typing.Any:
    """The class of the objective: `paired`, `prefix`, `whole` and `sides` are known without a vocabulary."""
    return self.objective.func

  def content(self) -> dict:
    """Returns what says which data these are, for data.json."""
    mixture = sorted(entry if isinstance(entry, str) else entry[0] for entry in self.mixture or ())
    large = dict(cache=self.cache, shard_mb=self.shard_mb) if self.cache != 'whole' else {}
    return large | dict(task=self.task, files=self.files, jsonl=self.jsonl, mixture=mixture, field=self.field,
                        documents=self.documents)

  def shapes(self, rows: int) -> dict:
    """Returns dict name -> (shape, dtype) of a batch: i32[rows,T] of each stack."""
    batch = pack.empty(self.lengths(), 0, self.rule.prefix)
    return {name: ((rows, *array.shape[1:]), array.dtype) for name, array in batch.items()}

  def lengths(self, model: typing.Any = None) -> dict:
    """Returns dict stack -> tokens of a row."""
    return {side: self.objective.keywords[field] for side, field in self.rule.sides.items()}

  def open(self, cfg: ml_collections.ConfigDict, found: records.Record = records.NONE) -> 'Opened':
    """Returns the rows; of a run's Record `found` if they are the same."""
    kind = Opened if self.cache == 'whole' else Large
    return kind(self, found, cfg.model.get('start_id', 0) if 'model' in cfg else 0)

  def shares(self) -> tuple:
    """Returns the (task name, weight) pairs, sorted by name; weight None = by its size."""
    mixture = self.mixture
    if mixture and not hasattr(mixture, 'items') and all(isinstance(name, str) for name in mixture):
      if not self.mixture_cap and self.mixture_temperature == 1:
        raise errors.UserError(f'data.mixture={", ".join(mixture)} are names without weights; they need '
                               'data.mixture_cap, the most examples that count (T5: 65536)')
      return tuple((name, None) for name in sorted(mixture))
    pairs = tuple(sorted(mixture.items() if hasattr(mixture, 'items') else mixture or ()))
    for name, weight in pairs:
      if not weight > 0:
        raise errors.UserError(f'data.mixture: the weight of {name} is {weight}; it must be above 0')
    return pairs or ((self.task, 1.0),)

  def weights(self, by_task: dict) -> list[float]:
    """Returns the weights of the mixture, in the order of `shares`; by_task: dict task name -> Cache."""
    def by_size(cache):
      examples = cache.facts['splits']['train']['documents'] // (2 if cache.facts.get('paired') else 1)
      return float(min(examples, self.mixture_cap or examples)) ** (1 / self.mixture_temperature)
    return [weight or by_size(by_task[name]) for name, weight in self.shares()]

  def tasks(self) -> list:
    """Returns the list of Tasks."""
    files = tuple(self.jsonl) or self.files
    own_files = lambda name: files if name in tasks.OWN_FILES or self.jsonl or not self.mixture else ()
    read_as = lambda name: dict(field=self.field, documents=self.documents) if (
        name == 'text' or not self.mixture) else {}
    return [tasks.get(name, own_files(name), self.metrics, **read_as(name)) for name, _ in self.shares()]

  def large(self) -> typing.Any:
    """Returns the Task of a corpus that is not held whole; UserError where data.cache is not for it."""
    objective = self.rule.__module__.rpartition('.')[2]
    for field, value, wrong in (
        ('mixture', self.mixture, self.mixture), ('jsonl', self.jsonl, self.jsonl),
        ('objective', objective, self.rule.paired),
        ('eval_split', self.eval_split, self.eval_split == 'train')):
      if wrong:
        raise errors.UserError(f'data.cache={self.cache!r} is for the documents of one task, but data.'
                               f'{field}={value!r}; nearest: --config.data.cache=whole')
    how = {name: getattr(self, name) for name in ('field', 'documents') if getattr(self, name)}
    return corpora.of(self.task, self.files, **how)

  def vocabulary(self, found: records.Record = records.NONE, among: list | None = None) -> typing.Any:
    """Returns the vocabulary: the run's own, if Record `found` has it; `among` are the tasks, if at hand."""
    def make():
      tasks_of = among or (self.tasks() if self.vocab.startswith('train:') else ())
      return caches.vocabulary_of(self.vocab, tasks_of, self.extra_ids, self.cache_dir)
    return found.vocabulary(self, make)

  def open_caches(self) -> dict:
    """Returns {task name: Cache}, all with the same vocabulary; makes what is missing."""
    if self.cache != 'whole':
      raise errors.UserError(f'data.cache={self.cache!r}, but this reads the whole text at once; nearest: '
                             '--config.data.cache=whole')
    sources = self.tasks()
    vocabulary = self.vocabulary(among=sources)
    return {task.name: caches.of(task, vocabulary, self.cache_dir) for task in sources}


class Opened:
  """The rows of tasks of text; data/batches.py says what opened data need."""

  def __init__(self, source: Texts, found: records.Record, start: int):
    self._source, self._start, recorded_caches = source, start, found.known(source)
    self.recorded = bool(recorded_caches)
    if recorded_caches:
      self.vocabulary = source.vocabulary(found)
      self._caches = {name: _recorded(source, found, name, self.vocabulary) for name in recorded_caches}
      self.files, self.metrics = found.values['files'], found.values['metrics']
    else:
      sources = source.tasks()
      self.files = records.seen(file for task in sources for file in task.facts.get('files', ()))
      self.vocabulary = source.vocabulary(found, sources)
      self._caches = {task.name: caches.of(task, self.vocabulary, source.cache_dir) for task in sources}
      self.metrics = {task.name: list(task.metrics) for task in sources}
    self._objective = source.objective(self.vocabulary)
    paired = {name: bool(cache.facts.get('paired')) for name, cache in self._caches.items()}
    self._objectives = self._objective.of(paired) if hasattr(self._objective, 'of') else dict.fromkeys(
        paired, self._objective)
    self.keys = {name: cache.key for name, cache in self._caches.items()}
    self.caches = {name: cache.path for name, cache in self._caches.items()}
    self.weights = source.weights(self._caches)

  def rows(self, name: str, split: str, seed: int, train: bool) -> 'Rows':
    """Returns the Rows of a task; `train` packs them, where the configuration says so."""
    objective, cache = self._objectives[name], self._caches[name]
    if objective.paired and (self._source.join or not cache.facts.get('paired')):
      raise errors.UserError(f'{self._title()} takes pairs one by one: it needs data.join=False (now '
                             f'{self._source.join}) and a task of pairs (now {cache.facts["task"]}; nearest: '
                             'pairs, jsonl)')
    return self._scored(self._of(streams.Stream(cache, split, objective.eos), objective, seed, train))

  def _of(self, stream, objective, seed, train):
    """The Rows of a stream of tokens."""
    source = self._source
    if objective.paired:
      segments, sizes = streams.pairs(stream)
    else:
      segments = streams.segments(stream, objective.segment, source.join)
      sizes = segments[:, 1] - segments[:, 0]
    packs = None
    if train and source.pack and not source.join:
      packs = pack.plan(objective.lengths(sizes), list(objective.limits.values()))
    field = 'replaced' if train else 'eval_replaced'
    return Rows(stream, segments, packs, objective, seed,
                _unscored(source.loss_from, objective.limits['decoder']),
                swap.checked(field, getattr(source, field)), self.vocabulary.eos_id, self._start)

  def _scored(self, rows):
    """`rows`; raises UserError where data.loss_from leaves none of their targets a loss."""
    sizes = rows.segments[:, 1] - rows.segments[:, 0]
    if rows.unscored and not rows.objective.paired and (
        longest := rows.objective.lengths(sizes)[:, -1].max()) <= rows.unscored:
      near = int(100 * (longest - 1.01) / rows.objective.limits['decoder']) / 100
      raise errors.UserError(f'data.loss_from={self._source.loss_from}: the first {rows.unscored} targets of '
                             f'a text have no loss, and the longest text has {longest}; nearest: '
                             f'data.loss_from={near}')
    return rows

  def info(self) -> dict:
    """Returns the facts of the text; see `info` of data/batches.py.

    num_bytes, num_tokens, num_documents count the evaluation split. EOS counts among the tokens, not
    among the bytes. bytes_per_token = num_bytes / num_tokens. piece_bytes are those of the vocabulary's
    pieces, which are num_bytes unless the vocabulary rewrites text.
    """
    facts = self._facts()
    sizes = [of_task['splits'][self._source.eval_split] for of_task in facts]
    total = lambda key: sum(size[key] for size in sizes)
    num_bytes, num_tokens, documents = total('bytes'), total('tokens'), total('documents')
    return dict(vocab=self.vocabulary, vocab_size=self.vocabulary.vocab_size, num_bytes=num_bytes,
                num_tokens=num_tokens, num_documents=documents, bytes_per_token=num_bytes / num_tokens,
                piece_bytes=total('piece_bytes'), sources=facts)

  def _facts(self):
    """Facts of each task, as a cache has them."""
    return [cache.facts for cache in self._caches.values()]

  def num_bytes(self, batch: dict) -> int | None:
    """Returns the bytes of the pieces scored in a batch; None if only a part of a text is predicted."""
    if not getattr(self._objective, 'whole', False):
      return None
    return int((batch['decoder_loss_weights'] * self.vocabulary.num_bytes(
        batch['decoder_target_tokens'])).sum())

  def judged(self) -> tuple:
    """Returns (dict task -> examples.Judged of the tasks that have metrics, the Rower of their examples)."""
    if not self._objective.paired:
      raise errors.UserError(f'{self._title()} has no examples to judge; eval.methods needs seq2seq or '
                             'prompted')
    metrics = {name: tuple(self._source.metrics or own_metrics) for name, own_metrics in self.metrics.items()}
    by_task = {name: examples.Judged(caches.records(cache), metrics[name])
               for name, cache in self._caches.items() if metrics[name]}
    return by_task, Rower(self._objective, self.vocabulary, self._start)

  def _title(self):
    return f'data.objective={type(self._objective).__module__.rpartition(".")[2]!r}'


class Large(Opened):
  """The rows of a corpus that is not held whole: `feed` gives those of training, window by window."""

  def __init__(self, source: Texts, found: records.Record, start: int):
    self._source, self._start, self._found = source, start, found
    self._name = source.task
    kept = found.known(source) and self._kept()
    self.recorded = bool(kept)
    if kept:                             # all shards are there: the files are not needed
      self.vocabulary, self.files = source.vocabulary(found), found.values['files']
      self._shards = sharded.Shards(kept.path, self.vocabulary, kept.key)
    else:
      task = source.large()
      self.files = records.seen(task.facts.get('files', ()), 'sample')
      self.vocabulary = source.vocabulary(found, [task])
      self._shards = sharded.of(task, self.vocabulary, round(source.shard_mb * 1e6), source.cache_dir)
    self._objective = source.objective(self.vocabulary)
    of = getattr(self._objective, 'of', None)
    self._objectives = of({self._name: False}) if of else {self._name: self._objective}
    self.keys, self.weights, self.metrics = {self._name: self._shards.key}, [1.0], {self._name: []}
    self.caches = {self._name: self._shards.path} if source.cache == 'shards' else {}
    self._held = self._validation()

  def _kept(self):
    """The `store.Kept` of the run's own shards, if all are there; else None."""
    try:
      return self._found.opened(self._source, self._name)
    except errors.Damaged:
      return None

  def _validation(self):
    """(documents held out, their facts): of the shards' own cache, or in memory."""
    eos = self._objectives[self._name].eos
    if self._source.cache == 'shards':
      cache = self._shards.validation()
      return streams.Stream(cache, 'validation', eos), cache.facts['splits']['validation']
    stream, sizes = chunks.held(self._shards.task.documents('validation'), self.vocabulary, eos)
    return stream, sharded.held_some(sizes)

  def rows(self, name: str, split: str, seed: int, train: bool) -> 'Rows':
    """Returns the Rows of the documents that are held out."""
    return self._scored(self._of(self._held[0], self._objectives[name], seed, train))

  def feed(self, seed_of: typing.Callable, shuffle: bool) -> windows.Feed:
    """Returns the order of the rows of training.

    Args:
      seed_of: parts, for repr, -> a seed below 2**64.
      shuffle: False takes the rows in order.
    """
    name, objective = self._name, self._objectives[self._name]
    streamed = windows.Streamed(self._shards.task, self.vocabulary, self._shards.size, objective.eos)
    from_shards = windows.FromShards(self._shards, objective.eos, self._make)
    opened = from_shards if self._source.cache == 'shards' else streamed
    order = lambda epoch, window: seed_of('order', name, epoch, window) % 2**32
    of = lambda stream: self._of(stream, objective, seed_of('draws', name), True)
    return windows.Feed(opened, of, order if shuffle else None)

  def _make(self):
    """Makes the shards that are missing, beside the training; returns what raises if that fails."""
    how = {field: getattr(self._source, field) for field in ('field', 'documents')}
    return maker.beside(self._shards, shard_process.spec(self._shards, self._source.files, how))

  def _facts(self):
    """Facts of the documents that are held out."""
    facts = self._shards.task.facts if self._shards.task else {}
    return [dict(task=self._name, key=self._shards.key, **facts, vocabulary=self.vocabulary.digest,
                 splits=dict(validation=self._held[1]))]


@dataclasses.dataclass(frozen=True)
class Rows:
  """The rows of one task and split: segments of a stream, or packs of them."""
  stream: streams.Stream
  segments: np.ndarray  # i64[n,2]
  packs: list | None
  objective: typing.Any
  seed: int
  unscored: int  # first targets of a segment without loss
  replaced: float = 0.0  # share of the tokens
  eos: int = 0
  start: int = 0                       # id before the first token of a segment

  def __len__(self):
    return len(self.segments) if self.packs is None else len(self.packs)

  def fill(self, batch: dict[str, np.ndarray], at: int, row: int, number: int) -> None:
    """Writes row `row` into row `at` of `batch`; `number` decides what is random in it."""
    rng = None
    if self.objective.random:
      rng = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 0, number]))
    chosen = [row] if self.packs is None else self.packs[row]
    texts = [self.stream.read(*self.segments[i]) for i in chosen]
    if self.replaced:                    # draws of its own: the objective's draws stay the same
      noise = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 1, number]))
      texts = [swap.swap(tokens, self.replaced, self.eos, noise) for tokens in texts]
    examples = [self.objective.example(tokens, rng) for tokens in texts]
    pack.fill(batch, at, examples, self.unscored, self.start)


@dataclasses.dataclass(frozen=True)
class Rower:
  """Makes rows of texts, as evaluation has them: one pair a row."""
  objective: typing.Any
  vocabulary: typing.Any
  start: int = 0                       # id before the first token of a target

  def batch(self, pairs: typing.Sequence[tuple], size: int) -> dict[str, np.ndarray]:
    """Returns a batch of `size` rows with the (inputs, targets) `pairs`, at most `size`, and empty rows."""
    batch = pack.empty(self.objective.limits, size)
    eos = np.asarray([self.vocabulary.eos_id], np.int32)
    ids = self.vocabulary.encode([text for pair in pairs for text in pair])
    for at in range(len(pairs)):
      tokens = np.concatenate([ids[2 * at], eos, ids[2 * at + 1], eos])
      pack.fill(batch, at, [self.objective.example(tokens, None)], start=self.start)
    return batch


def _recorded(source, found, name, vocabulary):
  """The Cache of task `name` that Record `found` names; made again if it is gone or damaged."""
  def make():
    task = next(task for task in source.tasks() if task.name == name)
    return caches.of(task, vocabulary, source.cache_dir)
  folder = found.kept(source, name, make)
  return caches.Cache(folder.path, vocabulary, folder.facts)


def _unscored(share, length):
  """How many of the first targets of a segment have no loss."""
  if not 0 <= share < 1:
    raise errors.UserError(f'data.loss_from={share} is a share of the row: at least 0.0 and below 1.0')
  return ranges.rounded_up(share * length)
