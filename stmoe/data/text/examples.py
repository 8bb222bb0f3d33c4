"""Text-to-text tasks with metrics: how a task is declared, and its examples from a file or a stored set.

An example is a record, a dict for JSON:
  inputs, targets  what goes in, and what is learned to come out
  references       texts that count as right
  choices          the labels among which a model may choose; empty where it must write
  group            what is scored together: a question of MultiRC, a query of ReCoRD
  label            bool, where the metric asks whether `references` are right (WSC)
  baseline         what a trivial system says: the first sentence of a text, its source

A Form converts the rows of a data set, with the field names of TensorFlow Datasets, into examples. Its
rows come from TensorFlow Datasets, or from the user's files in the format the set was released in: jsonl, or
.tsv, a table whose cells have tabs between them and no quotes.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib

from stmoe import errors
from stmoe import files
from stmoe.data import given
from stmoe.data.text import corpus
from stmoe.data.text import tasks

UNKNOWN = '<unk>'                        # the target of an example whose label is kept secret
TRAINING, HELD_OUT = ('train',), ('val', 'dev', 'validation')         # names of files in a folder
FORMATS = ('.jsonl', '.tsv')


def record(inputs, targets, *, references=None, choices=(), group=None, **more):
  """Returns an example; without `references` the target is the only reference.

  Raises ValueError for references or choices that are one text.
  """
  for name, texts in dict(references=references, choices=choices).items():
    if isinstance(texts, str):
      raise ValueError(f'{name} is {texts!r}, which must be a list of texts')
  return dict(inputs=inputs, targets=targets, references=list(references or [targets]),
              choices=list(choices), group=group, **more)


@dataclasses.dataclass(frozen=True)
class Judged:
  """The examples of the validation split on which a task is judged, and the names of its metrics."""
  examples: list
  metrics: tuple


def label(value, names):
  """Returns the name of a label given as name, number or bool; UNKNOWN for -1.

  >>> label(True, ('False', 'True')), label('b', 'ab'), label(-1, 'ab')
  ('True', 'b', '<unk>')
  """
  if isinstance(value, str):
    if value not in names:
      raise ValueError(f'label {value!r} is none of {", ".join(names)}')
    return value
  if not -1 <= int(value) < len(names):
    raise ValueError(f'label {value!r} is no number from 0 to {len(names) - 1}')
  return UNKNOWN if int(value) == -1 else names[int(value)]


@dataclasses.dataclass(frozen=True)
class Form:
  """How a task with metrics is declared.

  Attributes:
    name:    what the configuration calls it.
    convert: row -> list of examples.
    metrics: names of modules of stmoe/metrics.
    tfds:    name in TensorFlow Datasets, '' where it is not there.
    splits:  our splits as they are called there.
    rows:    object of a line of jsonl, or dict column -> cell of a line of .tsv -> list of rows.
    stem:    how its files begin in a folder: STEM/train.jsonl, STEM_train.jsonl; '' = the name.
    header:  names of the columns of .tsv; () = the first line has them.
    held_out: how the name of a file of validation begins in a folder.
    trained: example -> whether it is for training.
    version: of the conversion; a change makes new caches.
  """
  name: str
  convert: callable
  metrics: tuple
  tfds: str = ''
  splits: tuple = tasks.SPLITS
  rows: callable = lambda found: [found]
  stem: str = ''
  header: tuple = ()
  held_out: tuple = HELD_OUT
  trained: callable = lambda example: True
  version: int = 1

  def examples(self, rows, split):
    """Gives the examples of rows; an example whose group is None is a group by itself."""
    number = 0
    for row in rows:
      for example in self.convert(row):
        if split == 'train' and not self.trained(example):
          continue
        yield example | dict(group=str(number if example['group'] is None else example['group']))
        number += 1

  def task(self, files=()):
    """Returns the Task of this form, of the user's jsonl `files` or of TensorFlow Datasets."""
    if files:
      return self._of_files(files)
    if not self.tfds:
      raise errors.UserError(f'data.task={self.name!r} is not in TensorFlow Datasets; give its jsonl with '
                             '--config.data.jsonl=TRAIN,VALIDATION')
    piped = functools.partial(tasks.piped_examples, self.name)
    return tasks.Task(
        self.name, f'{self.tfds} {self.splits} {self.version}', dict(tfds=self.tfds, paired=True),
        lambda split: (example[side] for example in piped(split) for side in tasks.PAIR), lambda split: None,
        self.tfds, tasks.PAIR, self.metrics, piped, self)

  def _of_files(self, files):
    paths = [str(path) for path in find(files, self.stem or self.name, self.held_out)]
    parts = [read(path, self) for path in paths]
    if len(parts) == 1:
      at = len(parts[0]) - max(len(parts[0]) // corpus.HELD_OUT, 1)
      parts = [parts[0][:at], parts[0][at:]]
    by_split = {split: list(self.examples(rows, split)) for split, rows in zip(tasks.SPLITS, parts)}
    for split, of_split in by_split.items():
      if not of_split:
        raise errors.UserError(f'data.jsonl={", ".join(paths)}: no example of {self.name} for {split}')
    key = hashlib.sha256(json.dumps([by_split, self.version], sort_keys=True).encode()).hexdigest()
    read_texts = lambda split: (example[side] for example in by_split[split] for side in tasks.PAIR)
    return tasks.Task(self.name, key, dict(files=paths, paired=True), read_texts,
                      lambda split: sum(len(text.encode()) for text in read_texts(split)), '', tasks.PAIR,
                      self.metrics, by_split.__getitem__, self)


def find(files, stem, held_out=HELD_OUT):
  """Returns the one or two files, of training and of validation, among `files` or in the folder they name.

  In a folder a task has STEM/train.jsonl and STEM/val.jsonl, as SuperGLUE is released. Or it has
  STEM_train.jsonl and STEM_val.jsonl, maybe with more behind. Files may be .tsv, and `.gz`, too. Without a
  file of validation, the file of training is divided.
  """
  paths = [pathlib.Path(file) for file in files]
  if not any(path.is_dir() for path in paths):
    if len(paths) > 2:
      raise errors.UserError(f'data.jsonl={", ".join(map(str, paths))}: give one file, or one of training '
                             'and one of validation, or a folder')
    return paths
  folder, chosen = paths[0], []
  for names in (TRAINING, held_out):
    at = [path for name in names for pattern in (f'{stem}/{name}*', f'{stem}_{name}*')
          for path in sorted(folder.glob(pattern)) if path.name.removesuffix('.gz').endswith(FORMATS)]
    chosen += at[:1]
  if not chosen or 'train' not in chosen[0].name:
    raise errors.UserError(f'data.jsonl={folder}: no {stem}_train.jsonl and no {stem}/train.jsonl in it, and '
                           'none as .tsv'
                           f'{errors.nearest(f"{stem}_train.jsonl", [p.name for p in folder.iterdir()])}')
  return chosen


def read(path, form):
  """Returns the rows in a file of a Form; a row that it cannot convert is a UserError with file and line."""
  all_rows, lines = [], given.lines(path, 'data.jsonl')
  parse = _parser(path, form.header, lines)
  for number, line in lines:
    try:
      line_rows = form.rows(parse(line))
      for row in line_rows:
        for example in form.convert(row):
          _check(example)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
      raise errors.UserError(f'data.jsonl: {path}, line {number} is no row of task {form.name}: '
                             f'{_why(error)}') from error
    all_rows += line_rows
  if not all_rows:
    raise errors.UserError(f'data.jsonl: {path} has no row of task {form.name}')
  return all_rows


def _parser(path, header, lines):
  """The function of a line that returns its object; takes the line of names, if any, from `lines`."""
  if not given.unpacked_name(path).endswith('.tsv'):
    return lambda line: files.parse_json(line, object)
  cells = lambda line: line.rstrip('\r').split('\t')
  names = header or cells(next(lines, (0, ''))[1])
  return lambda line: dict(zip(names, cells(line)))              # a line that ends early lacks its last cells


def _check(example):
  texts = [example['inputs'], example['targets'], *example['references'], *example['choices']]
  if not all(isinstance(text, str) for text in texts):
    raise ValueError('inputs, targets, references and choices are texts')
  if not example['inputs'].strip() or not example['targets'].strip():
    raise ValueError('inputs or targets are empty')


def _why(error):
  if isinstance(error, KeyError):
    return f'the field {error} is missing'
  return str(error) if isinstance(error, ValueError) else 'a field has another type'
