"""Tables: features and labels of rows, from .csv or .npz files, or of MovieLens."""

import csv
import dataclasses
import functools
import io
import math
import re
import typing

import ml_collections
import numpy as np

from stmoe import errors
from stmoe import ranges
from stmoe.data import arrays
from stmoe.data import given as texts
from stmoe.data import movielens
from stmoe.data import record as records

SEPARATORS = {';': 'semicolons', '\t': 'tabs', '|': 'bars'}
SEVERAL = re.compile(r'(.+)\[(\d+)\]')        # an array of several columns
FRACTION = re.compile(r'[-+]?\d*\.\d+(e[-+]?\d+)?', re.IGNORECASE)      # a label that is measured, no name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """Rows of columns; a column is named by the header of a .csv, or is an array [N] of an .npz.

  `NAME[n]` means the n columns of an array [N,n] of an .npz, wherever a column may be named.

  files: one for both splits, or one for training and one for validation. With one, every tenth row is held
    out, unless `split` is said. The ratings of a MovieLens set are such a file; `data/movielens.py` says
    which columns they have.
  numbers: columns of numbers, the entry `features` f32[rows,F]. They are standardised: the mean of the
    training part is subtracted, and its deviation divides.
  categories: columns of names or whole numbers, the entry `ids` i32[rows,C]. Each value of the training part
    has an id, sorted, column after column. The first id of a column stands for all values that are not there.
  num_ids: ids of all categories together, for which the model has room.
  given: columns of names or whole numbers, each an entry given/NAME i32[rows] for routers to read. Ids are
    those of the sorted values of the training part from 1 on; 0 stands for all other values.
  labels: columns to predict. They are numbers, the entry `values` f32[rows,n] as it is; `weights`
    f32[rows,n] is 0 where a label is not there, an empty cell or text or NaN, else 1.
  classes: whether the label is a class: one column of names or whole numbers, the entry `labels` i32[rows,1],
    numbered in the order of the sorted values of the training part. `weights` is f32[rows,1].
  group: column of names or whole numbers, the user of a row: the entry `group` i32[rows], by which
    evaluation averages (GAUC). All users of a file are numbered, also those who are not in training.
  split: column that says train or validation; '' = there is none.
  cache_dir: folder of caches; '' = $STMOE_CACHE_DIR, else ~/.cache/stmoe.
  """
  files: ranges.Many(ranges.Text, least=1)
  labels: ranges.Many(ranges.Text, least=1)
  numbers: ranges.Many(ranges.Text) = ()
  categories: ranges.Many(ranges.Text) = ()
  num_ids: ranges.Natural = 0
  given: ranges.Many(ranges.Text) = ()
  classes: ranges.Flag = False
  group: ranges.Text = ''
  split: ranges.Text = ''
  cache_dir: ranges.Text = ''

  kind = 'table'

  @property
  def targets(self) -> str:
    """What a model must predict."""
    return 'labels' if self.classes else 'values'

  @property
  def answers(self) -> tuple:
    """The names of the columns of `values`."""
    named = [(SEVERAL.fullmatch(name), name) for name in self.labels]
    columns = [[f'{several[1]}[{i}]' for i in range(int(several[2]))] if several else [name]
               for several, name in named]
    return () if self.classes else tuple(sum(columns, []))

  def content(self) -> dict:
    """Returns what says which data these are, for data.json."""
    fields = ('files', 'labels', 'numbers', 'categories', 'given', 'classes', 'group', 'split')
    return {field: getattr(self, field) for field in fields}

  def shapes(self, rows: int) -> dict:
    """Returns dict name -> (shape, dtype) of a batch."""
    num_labels = _width(self.labels)
    name, dtype = ('labels', np.int32) if self.classes else ('values', np.float32)
    entries = {name: ((rows, num_labels), dtype), 'weights': ((rows, num_labels), np.float32)}
    if self.numbers:
      entries |= dict(features=((rows, _width(self.numbers)), np.float32))
    if self.categories:
      entries |= dict(ids=((rows, _width(self.categories)), np.int32))
    of_row = ['group'] if self.group else []
    return entries | {name: ((rows,), np.int32) for name in of_row + [f'given/{name}' for name in self.given]}

  def lengths(self, model: typing.Any = None) -> dict:
    """Returns dict stack -> positions of a row: a row is one token."""
    return dict(encoder=1, decoder=1)

  def open(self, cfg: ml_collections.ConfigDict, found: records.Record = records.NONE) -> arrays.Opened:
    """Returns the rows; of a run's Record `found` if they are the same.

    Other files of the same columns are read with the scales and the ids of the run.
    """
    return arrays.Opened(self, found, lambda: _read(self, found.facts(self)))


def _width(names):
  """The number of columns that names mean."""
  return sum(int(SEVERAL.fullmatch(name)[2]) if SEVERAL.fullmatch(name) else 1 for name in names)


def _read(source, known):
  """(dict split -> dict name -> array, facts) of a Table's files; `known` are the facts of a run, or {}."""
  if source.classes and _width(source.labels) != 1:
    raise errors.UserError(f'data.labels={", ".join(source.labels)}: with data.classes=True they are one '
                           'column')
  if not (source.numbers or source.categories):
    raise errors.UserError('data.numbers and data.categories are empty: a table needs columns to predict '
                           'from')
  _once(source)
  paths = arrays.paths(source)
  tables = [columns(path) for path in paths]
  if len(tables) == 2:
    held = np.arange(sum(table.length for table in tables)) >= tables[0].length
  else:
    column = tables[0].names(source.split)[:, 0] if source.split else None
    held = arrays.held_out(paths[0], column, tables[0].length)
  numbers = lambda fields, missing=False: np.concatenate(
      [np.concatenate([table.numbers(name, missing) for name in fields], 1) for table in tables])
  names = lambda fields: np.concatenate(
      [np.concatenate([table.names(name) for name in fields], 1) for table in tables])
  place = lambda fields: functools.partial(_place, tables, fields)
  entries, facts = {}, {}
  if source.numbers:
    entries['features'], facts['scales'] = _standardised(
        numbers(source.numbers), held, known.get('scales'), place(source.numbers))
  if source.categories:
    entries['ids'], facts['categories'] = _numbered(names(source.categories), held, known.get('categories'))
    _room(source, facts['categories'])
  for name in source.given:
    ids, facts[f'given/{name}'] = _numbered(names([name]), held, known.get(f'given/{name}'))
    entries[f'given/{name}'] = ids[:, 0]
  if source.group:
    entries['group'] = np.unique(names([source.group])[:, 0], return_inverse=True)[1].astype(np.int32)
  if source.classes:
    labels, facts['classes'] = _classes(names(source.labels), held, known.get('classes'),
                                         place(source.labels))
    entries |= labels
    facts['num_classes'] = len(facts['classes'])
  else:
    entries |= _values(numbers(source.labels, missing=True), place(source.labels))
  return arrays.divided(paths[0], entries, held), facts


def _once(source):
  """Raises UserError for a column that is read twice, or that would tell a model its own answer."""
  for field in ('numbers', 'categories', 'given', 'labels'):
    names = list(getattr(source, field))
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
      raise errors.UserError(f'data.{field} names {twice!r} twice; nearest: data.{field}='
                             f'{",".join(dict.fromkeys(names))}')
    told = next((name for name in names if name in source.labels and field != 'labels'), None)
    if told is not None:
      raise errors.UserError(f'data.{field} and data.labels both name {told!r}: the model would be told what '
                             f'it has to predict; nearest: data.{field} without {told}')


def _place(tables, fields, row, column):
  """Where entry [row, column] of the columns `fields` of all tables lies, in words."""
  names = [name for name in fields for _ in range(_width([name]))]
  for table in tables:
    if row < table.length:
      return table.place(row, names[column])
    row -= table.length
  raise IndexError(row)


def _standardised(values, held, scales, place):
  """(f32[N,F] of values f64[N,F], scales [[mean, deviation]] of each column); `scales` may be known."""
  with np.errstate(over='ignore', invalid='ignore'):                 # told below
    if scales is None:
      part = values[~held] if (~held).any() else values
      deviation = part.std(0)
      scales = np.stack([part.mean(0), np.where(deviation > 0, deviation, 1.0)], 1).tolist()
    mean, deviation = np.asarray(scales).T
    scaled = ((values - mean) / deviation).astype(np.float32)
  bad = ~np.isfinite(scaled) | ~np.isfinite(deviation)               # [N, F]
  if bad.any():
    row, column = np.unravel_index(np.argmax(bad * np.abs(values)), bad.shape)
    raise errors.UserError(f'{place(row, column)} holds {values[row, column]:g}, too large to be '
                           'standardised')
  return scaled, scales


def _numbered(names, held, known):
  """(ids i32[N,C] of names [N,C], the sorted values of each column in training, or those `known`)."""
  values = known or [sorted(set(column[~held])) for column in names.T]
  ids, first = np.zeros(names.shape, np.int32), 0
  for at, kinds in enumerate(values):
    number = {name: first + 1 + i for i, name in enumerate(kinds)}
    ids[:, at] = [number.get(name, first) for name in names[:, at]]
    first += len(kinds) + 1
  return ids, values


def _room(source, values):
  """Raises UserError if there are more ids than the model has room for."""
  needed = sum(len(kinds) + 1 for kinds in values)
  if needed > source.num_ids:
    raise errors.UserError(f'data.num_ids={source.num_ids}, but {", ".join(source.categories)} of '
                           f'data.categories have {needed} ids; nearest: data.num_ids={needed}')


def _values(values, place):
  """Dict of values and weights, f32[N,n], of f64[N,n] with NaN where there is none."""
  present = ~np.isnan(values)
  with np.errstate(over='ignore'):
    filled = np.where(present, values, 0).astype(np.float32)
  if not np.isfinite(filled).all():
    row, column = np.argwhere(~np.isfinite(filled))[0]
    raise errors.UserError(f'{place(row, column)} holds {values[row, column]:g}, too large for a number of '
                           '32 bits')
  return dict(values=filled, weights=present.astype(np.float32))


def _classes(names, held, known, place):
  """(dict of labels i32[N,1] and weights f32[N,1], the sorted classes in training, or those `known`).

  names: [N,1], '' where there is none.
  """
  classes = known or sorted({*names[~held, 0]} - {''}, key=_order)
  number = {name: i for i, name in enumerate(classes)} | {'': 0}
  row = next((row for row, name in enumerate(names[:, 0]) if name not in number), None)
  if row is not None:
    unknown = str(names[row, 0])
    near = '; nearest: data.classes=False' if FRACTION.fullmatch(unknown) else ''
    more = f' and {len(classes) - 10:,} more' if len(classes) > 10 else ''
    raise errors.UserError(f'{place(row, 0)}: the label {unknown!r} is in no row of training{near} '
                           f'(there are: {", ".join(classes[:10])}{more})')
  labels = np.array([number[name] for name in names[:, 0]], np.int32).reshape(-1, 1)
  return dict(labels=labels, weights=(names != '').astype(np.float32)), classes


def _order(name):
  """Sorts whole numbers by their value, before other names."""
  return (0, int(name), name) if re.fullmatch(r'\d{1,9}', name) else (1, 0, name)


def columns(path: str) -> typing.Any:
  """Returns the columns of file `path`: `length` N, and the methods `numbers` and `names` -> arrays [N,n]."""
  if movielens.form(path):
    return _Npz(path, movielens.columns(path))
  return _Npz(path, arrays.read(path)) if path.lower().endswith('.npz') else _Csv(path)


class _Npz:
  """Columns of an .npz."""

  def __init__(self, path, found):
    self.path, self._found = path, found
    if not found:
      raise errors.UserError(f'{path} holds no arrays')
    self.length = len(next(iter(found.values()))) if next(iter(found.values())).ndim else 0

  def numbers(self, name, missing):
    """Returns f64[N,n] of a column, NaN where `missing` is allowed."""
    column = self._column(name)
    if column.dtype.kind not in 'fiub':
      raise errors.UserError(f'{self.path}: column {name} is {column.dtype}; it must hold numbers')
    column = column.astype(np.float64)
    bad = ~np.isfinite(column) & ~(np.isnan(column) & missing)
    if bad.any():
      raise errors.UserError(f'{self.place(int(np.argwhere(bad)[0][0]), name)} is no finite number')
    return column

  def names(self, name):
    """Returns str[N,n] of a column of names or whole numbers."""
    column = self._column(name)
    if column.dtype.kind not in 'iubUS':
      raise errors.UserError(f'{self.path}: column {name} is {column.dtype}; it must hold names or whole '
                             'numbers')
    try:
      return np.char.decode(column, 'utf-8') if column.dtype.kind == 'S' else column.astype(str)
    except UnicodeDecodeError as error:
      raise errors.UserError(f'{self.path}: column {name} holds {error.object[:40]!r}, which is not UTF-8'
                             ) from error

  def place(self, row, name):
    """Returns where the entry of a row, from 0 on, of a column lies."""
    return f'{self.path}: row {row} of column {name}'

  def _column(self, name):
    several = SEVERAL.fullmatch(name)
    array = self._found[arrays.named(self.path, self._found, several[1] if several else name)]
    shape = (self.length, int(several[2])) if several else (self.length,)
    if array.shape != shape:
      raise errors.UserError(f'{self.path}: column {name} has the shape {list(array.shape)}; it must be '
                             f'{list(shape)}')
    return array.reshape(self.length, -1)


def _check_header(path, header):
  """Raises UserError for a file without a header, or with other marks than commas between its cells."""
  if not any(header):
    raise errors.UserError(f'{path} has no header: its first line must name the columns, with commas between')
  mark = next((mark for mark in SEPARATORS if len(header) == 1 and mark in header[0]), None)
  if mark:
    raise errors.UserError(f'{path}: {SEPARATORS[mark]} are between the cells of its header; a .csv has '
                           'commas there')


class _Csv:
  """Columns of a .csv: cells apart by commas, a header, UTF-8, the same as .gz."""

  def __init__(self, path):
    self.path = path
    try:
      lines = csv.reader(io.StringIO(texts.text(path), newline=''), strict=True)
      header = [name.strip() for name in next(lines, [])]
      _check_header(path, header)
      self._rows, self._lines = [], []
      for row in lines:
        if not row:
          continue
        if len(row) != len(header):
          raise errors.UserError(f'{path}, line {lines.line_num}: {len(row)} cells, and the header has '
                                 f'{len(header)}')
        self._rows.append(row)
        self._lines.append(lines.line_num)
    except csv.Error as error:
      raise errors.UserError(f'{path}, line {lines.line_num}: {error}') from error
    self._at = {name: i for i, name in enumerate(header)}
    if len(self._at) < len(header):
      twice = next(name for name in header if header.count(name) > 1)
      raise errors.UserError(f'{path}: the header has {twice!r} twice')
    self.length = len(self._rows)

  def numbers(self, name, missing):
    """Returns f64[N,1] of a column, NaN for an empty cell where `missing` is allowed."""
    column = np.empty((self.length, 1))
    for at, cell in enumerate(self._cells(name)):
      column[at] = math.nan if missing and not cell else self._number(name, at, cell)
    return column

  def names(self, name):
    """Returns str[N,1] of a column."""
    return np.array(self._cells(name), str).reshape(-1, 1)

  def place(self, row, name):
    """Returns where the cell of a row, from 0 on, of a column lies."""
    return f'{self.path}, line {self._lines[row]}: column {name}'

  def _cells(self, name):
    if name not in self._at:
      raise errors.UserError(f'{self.path} has no column {name!r}{errors.nearest(name, self._at)} (it has: '
                             f'{", ".join(self._at)})')
    return [row[self._at[name]].strip() for row in self._rows]

  def _number(self, name, at, cell):
    try:
      value = float(cell)
    except ValueError:
      value = math.nan
    if not math.isfinite(value):
      raise errors.UserError(f'{self.place(at, name)} holds {cell[:40]!r}, which is no finite number')
    return value
