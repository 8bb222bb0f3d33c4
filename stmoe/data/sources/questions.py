"""Extractive question answering as rows of a batch: windows of a question and a part of its context.

A row is [start] question [EOS] part of the context [EOS], [start] being id 0. It has two targets: the places
in the row of the first and of the last token of the answer, both 0 where the row has not the whole answer.
The context is cut into tokens by words, numbers and single other characters. So every token has a place in
the text. An answer goes from the first token of its first word to the last token of its last word.
"""

import dataclasses
import functools
import hashlib
import json
import re
import typing

import ml_collections
import numpy as np

from stmoe import errors
from stmoe import files
from stmoe import ranges
from stmoe.data import record as records
from stmoe.data import store
from stmoe.data.questions import eda
from stmoe.data.questions import squad
from stmoe.data.text import cache as caches
from stmoe.data.text import examples
from stmoe.data.text import pack
from stmoe.data.text import tasks

WORD = re.compile(r'(\s*)(\w+|[^\w\s])')
START = 0                          # the first id of a row
QUESTIONS = 'questions.jsonl'      # lines [split, domain, questions]
NUM_SPECIAL = 3                    # ids of a row that are neither question nor context


@dataclasses.dataclass(frozen=True)
class Tokens:
  """A text and its tokens: ids i32[n], and the characters begin i32[n] to end i32[n] of each token's word."""
  text: str
  ids: np.ndarray
  begin: np.ndarray
  end: np.ndarray


@dataclasses.dataclass(frozen=True)
class Window:
  """Tokens `first` to `last` of a context behind the question i32[n]; `answer` is its (first, last) token."""
  question: np.ndarray
  context: Tokens
  answer: tuple
  first: int
  last: int

  @property
  def offset(self) -> int:
    """Returns the place in the row of the context's token `first`."""
    return len(self.question) + 2

  def example(self, eos: int) -> dict:
    """Returns the row in the form that `pack.fill` takes."""
    ends = np.asarray([eos], np.int32)
    ids = [np.asarray([START], np.int32), self.question, ends, self.context.ids[self.first:self.last], ends]
    begin, end = self.answer
    inside = self.first <= begin and end < self.last
    targets = np.add(self.answer, self.offset - self.first) if inside else np.zeros(2)
    return dict(encoder=np.concatenate(ids), decoder=targets.astype(np.int32))

  def best(self, logits: np.ndarray, longest: int) -> tuple[float, str]:
    """Returns (score, text) of the best span of logits f32[2,T]: start <= end, at most `longest` tokens."""
    start, end = logits[:, self.offset:self.offset + self.last - self.first]
    score, first, last = best_span(start, end, longest)
    at, to = self.context.begin[self.first + first], self.context.end[self.first + last]
    return score, self.context.text[at:to]


def best_span(start: np.ndarray, end: np.ndarray, longest: int) -> tuple[float, int, int]:
  """Returns (score, first, last) of the largest start[first] + end[last], first <= last < first + longest.

  >>> best_span(np.array([1.0, 3.0, 0.0]), np.array([9.0, 0.0, 1.0]), 2)
  (10.0, 0, 0)
  """
  tried = []
  for width in range(min(longest, len(start))):
    sums = start[:len(start) - width] + end[width:]
    at = int(sums.argmax())
    tried.append((float(sums[at]), at, at + width))
  return max(tried, key=lambda each: each[0])


def tokenize(texts: typing.Iterable[str], vocabulary: typing.Any) -> typing.Callable[[str], 'Tokens']:
  """Returns a function text -> Tokens for `texts`; every word is encoded once, with the blanks before it."""
  words = sorted({match.group() for text in texts for match in WORD.finditer(text)})
  ids_of = dict(zip(words, vocabulary.encode(words)))

  @functools.cache
  def tokens(text):
    ids, spans = [np.zeros(0, np.int32)], []
    for match in WORD.finditer(text):
      word_ids = ids_of[match.group()]
      ids.append(word_ids)
      spans += [match.span(2)] * len(word_ids)
    begin, end = np.asarray(spans, np.int32).reshape(-1, 2).T
    return Tokens(text, np.concatenate(ids), begin, end)
  return tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Questions:
  """Questions with an answer in a text, cut into windows.

  task: 'squad'; 'stdlib_questions', two domains made of the standard library of this Python (squad.py); or
    'stdlib_domains', four of them, of which training shows two by few questions.
  files: of task squad: TRAIN,VALIDATION; each a file, several joined by `+`, or a folder (squad.py). The
    training files are mixed by their sizes; each file of validation is judged by itself.
  vocab, extra_ids, cache_dir: as for text (cache.py).
  inputs_length: tokens of a row.
  targets_length: 2, a start and an end.
  stride: tokens of the context that a window shares with the one before.
  question_length: most tokens of a question.
  answer_length: most tokens of a predicted answer.
  eda: augmentation of training contexts (eda.py).
  """
  task: ranges.Text
  files: ranges.Many(ranges.Text)
  vocab: ranges.Text
  extra_ids: ranges.Natural
  inputs_length: ranges.Count
  targets_length: ranges.Count
  stride: ranges.Count
  question_length: ranges.Count
  answer_length: ranges.Count
  eda: ranges.Group(files=ranges.Many(ranges.Text), copies=ranges.Natural, share=ranges.Share,
                    synonyms=ranges.Text)
  cache_dir: ranges.Text
  objective: ranges.Choice('spans') = 'spans'

  kind = 'spans'
  targets = 'positions'            # what a model must predict: places of the row

  def content(self) -> dict:
    """Returns what says which data these are, for data.json."""
    return dict(task=self.task, files=self.files, eda=self.eda)

  def shapes(self, rows: int) -> dict:
    """Returns dict name -> (shape, dtype) of a batch: i32[rows,T] of a window, i32[rows,2] of an answer."""
    batch = pack.empty(self.lengths(), 0)
    return {name: ((rows, *array.shape[1:]), array.dtype) for name, array in batch.items()}

  def lengths(self, model: typing.Any = None) -> dict:
    """Returns dict stack -> tokens of a row; the decoder's are the places of an answer."""
    return dict(encoder=self.inputs_length, decoder=self.targets_length)

  def open(self, cfg: ml_collections.ConfigDict, found: records.Record = records.NONE) -> 'Opened':
    """Returns the questions; of a run's Record `found` if they are the same."""
    _check(self)
    return Opened(self, found, cfg.seed)

  def vocabulary(self, found: records.Record = records.NONE, asked: dict | None = None) -> typing.Any:
    """Returns the vocabulary, trained on the questions of the files; `asked` are these, if at hand."""
    def make():
      trained_on = [_task(self.task, asked or load(self))] if self.vocab.startswith('train:') else []
      return caches.vocabulary_of(self.vocab, trained_on, self.extra_ids, self.cache_dir)
    return found.vocabulary(self, make)


class Opened:
  """The rows of the questions of all domains; data/batches.py says what opened data need."""

  metrics: dict = {}

  def __init__(self, source: Questions, found: records.Record, seed: int):
    self._source, name, recorded_caches = source, source.task, found.known(source)
    self.recorded = bool(recorded_caches)
    if recorded_caches:
      self.vocabulary, self.files = source.vocabulary(found), found.values['files']
      cache = found.kept(source, name, lambda: _kept(source, load(source), self.vocabulary, seed))
    else:
      self.files = records.seen(_files(source))
      loaded = load(source)
      self.vocabulary = source.vocabulary(found, loaded)
      cache = _kept(source, loaded, self.vocabulary, seed)
    self._questions = _read(cache)
    questions = [q for domains in self._questions.values() for group in domains.values() for q in group]
    self._tokens = tokenize({text for q in questions for text in (q.question, q.context)}, self.vocabulary)
    self.keys, self.caches, self.weights = {name: cache.key}, {name: cache.path}, [1.0]

  def rows(self, name: str, split: str, seed: int, train: bool) -> 'Rows':
    """Returns the Rows of a split; nothing in them is random."""
    del name, seed, train
    return Rows([window for questions in self._questions[split].values() for question in questions
                 for window in self.windows(question)], self.vocabulary.eos_id)

  def info(self) -> dict:
    """Returns the facts of the questions; see `info` of data/batches.py."""
    count = {split: {name: len(questions) for name, questions in domains.items()}
             for split, domains in self._questions.items()}
    return dict(vocab=self.vocabulary, vocab_size=self.vocabulary.vocab_size, num_questions=count,
                sources=[dict(task=name, key=key) for name, key in self.keys.items()])

  def windows(self, question: typing.Any) -> list[Window]:
    """Returns the Windows of a Question, which cover its context."""
    context = self._tokens(question.context)
    question_ids = self._tokens(question.question).ids[:self._source.question_length]
    to = question.start + len(question.answers[0])
    inside = np.flatnonzero((context.end > question.start) & (context.begin < to))
    answer = (int(inside[0]), int(inside[-1])) if len(inside) else (-1, -1)
    room = self._source.inputs_length - len(question_ids) - NUM_SPECIAL
    windows: list[Window] = []
    first = 0
    while not windows or windows[-1].last < len(context.ids):
      windows.append(Window(question_ids, context, answer, first, min(first + room, len(context.ids))))
      first += room - self._source.stride
    return windows

  def judged(self) -> tuple[dict, typing.Any]:
    """Returns (dict domain -> examples.Judged of its validation questions, each with its `windows`; self)."""
    example = lambda number, q: examples.record(q.question, q.answers[0], references=q.answers, group=number,
                                                windows=self.windows(q))
    return {name: examples.Judged([example(*each) for each in enumerate(questions)], ('squad',))
            for name, questions in self._questions['validation'].items()}, self

  def batch(self, windows: list[Window], size: int) -> dict[str, np.ndarray]:
    """Returns a batch of `size` rows with the Windows, at most `size` of them, and empty rows."""
    arrays, rows = pack.empty(self._source.lengths(), size), Rows(windows, self.vocabulary.eos_id)
    for at in range(len(windows)):
      rows.fill(arrays, at, at, 0)
    return arrays

  def answer(self, windows: list[Window], logits: typing.Sequence[np.ndarray]) -> str:
    """Returns the best text of a question over its windows; logits are f32[2,T] each."""
    spans = [window.best(of_window, self._source.answer_length) for window, of_window in zip(windows, logits)
             if window.last > window.first]
    return max(spans, key=lambda each: each[0], default=(0.0, ''))[1]


@dataclasses.dataclass(frozen=True)
class Rows:
  """Windows as rows of batches."""
  windows: list
  eos: int

  def __len__(self):
    return len(self.windows)

  def fill(self, batch: dict[str, np.ndarray], at: int, row: int, number: int) -> None:
    """Writes window `row` into row `at` of `batch`."""
    del number
    pack.fill(batch, at, [self.windows[row].example(self.eos)])


def _read(kept):
  """Dict split -> dict domain -> list of Questions of a `store.Kept`."""
  by_split = {split: {} for split in tasks.SPLITS}
  for split, domain, group in files.read_lines(kept.path / QUESTIONS, list, limit=store.WHOLE):
    contexts = {}
    by_split[split][domain] = [squad.Question(name, question, contexts.setdefault(context, context),
                                              tuple(answers), start)
                               for name, question, context, answers, start in group]
  return by_split


def _kept(source, asked, vocabulary, seed):
  """The `store.Kept` of the questions `asked`, with augmented questions for training; made if not there."""
  questions = asked | dict(train=eda.augmented(asked['train'], source.eda, seed))
  key = caches.digest(_task(source.task, questions).fingerprint, vocabulary.digest)
  path = store.named(caches.folder(source.cache_dir), f'{source.task}-questions', key)

  def write(folder):
    with open(folder / QUESTIONS, 'w', encoding='utf-8') as file:
      file.writelines(json.dumps([split, domain, [dataclasses.astuple(q) for q in group]]) + '\n'
                      for split, domains in questions.items() for domain, group in domains.items())
    return dict(key=key)
  return store.Kept(path, store.kept(path, write))


def _files(data):
  """The user's files that questions of section `data` are made of."""
  paths = [path for text in data.files for path in squad.paths(str(text))] if data.task == 'squad' else []
  return paths + [data.eda['synonyms']] * bool(data.eda['files'] and data.eda['synonyms'])


def load(data: typing.Any) -> dict:
  """Returns dict split -> dict domain -> list of Questions of section `data`, as they are given."""
  if data.task not in squad.TASKS:
    raise errors.UserError(f'data.task: no set of questions is called {data.task!r}'
                           f'{errors.nearest(data.task, squad.TASKS)} (there are: {", ".join(squad.TASKS)})')
  return squad.TASKS[data.task](tuple(data.files))


def _task(name, questions):
  """The Task whose documents are contexts, each once, and questions."""
  def documents(split):
    for domain in questions[split].values():
      yield from dict.fromkeys(q.context for q in domain)
      yield from (q.question for q in domain)

  digest = hashlib.sha256()
  for split, domains in questions.items():
    for domain, group in domains.items():
      digest.update(json.dumps([split, domain, [dataclasses.astuple(q) for q in group]]).encode())
  return tasks.Task(name, digest.hexdigest(), {}, documents, lambda split: None)


def _check(data):
  if data.targets_length != 2:
    raise errors.UserError(f'data.targets_length={data.targets_length}: an answer has a start and an end; '
                           'nearest: 2')
  least = NUM_SPECIAL + data.question_length + data.stride + 1
  if data.inputs_length < least or min(data.stride + 1, data.question_length, data.answer_length) < 1:
    raise errors.UserError(f'data.inputs_length={data.inputs_length}, stride={data.stride}, question_length='
                           f'{data.question_length}, answer_length={data.answer_length}: a row needs room '
                           f'for the question, the stride and 4 more; nearest: inputs_length={least}')
