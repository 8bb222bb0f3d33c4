"""Behaviours: items to be ranked for a user, and the items that the user chose before."""

import dataclasses
import typing

import ml_collections
import numpy as np

from stmoe import errors
from stmoe import ranges
from stmoe.data import arrays
from stmoe.data import record as records
from stmoe.data.sources import table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Behaviours:
  """Rows of K items that a user met one after the other, and the last M items that the user chose before.

  The entries of a batch are
    items i32[rows,K], history i32[rows,M]: ids of items from 1, 0 for items that training does not have
    history_weights f32[rows,M]: 1, and 0 where there is no item; the latest item comes first
    values f32[rows,K]: whether the item was chosen; weights f32[rows,K]: 0 where there is no item
    group i32[rows]: the user; part i32[rows]: by how many of `parts` the length of the history is exceeded
    features f32[rows,K,F], history_features f32[rows,M,F'] and query i32[rows], where such columns are named.
  A history ends before the time of the first item of its row. Items of the same time are in no history.

  files: one file of events, or one for training and one for validation: .csv, .npz or the ratings of a
    MovieLens set (see source table).
  user, item, time: columns; names or whole numbers, but for the time.
  label: column of 0 and 1. An event without a label is no item to be ranked.
  chosen: column of 0 and 1: whether an event is history later. '' = the label.
  numbers: columns of numbers of an item to be ranked, standardised by the events of training.
  history_numbers: alike, of a past item, such as its rating.
  query: column of names; '' = none.
  split: column that says train or validation; '' = every tenth event is held out.
  length: M, items of a history.
  items_per_row: K, items to be ranked.
  parts: limits of the length of a history for `part`.
  num_items, num_queries: ids of items and queries, for which the model has room, each with 0.
  cache_dir: folder of caches; '' = $STMOE_CACHE_DIR, else ~/.cache/stmoe.
  """
  files: ranges.Many(ranges.Text, least=1)
  num_items: ranges.Count
  user: ranges.Text = 'user'
  item: ranges.Text = 'item'
  time: ranges.Text = 'time'
  label: ranges.Text = 'like'
  chosen: ranges.Text = ''
  numbers: ranges.Many(ranges.Text) = ()
  history_numbers: ranges.Many(ranges.Text) = ()
  query: ranges.Text = ''
  num_queries: ranges.Natural = 0
  split: ranges.Text = ''
  length: ranges.Count = 20
  items_per_row: ranges.Count = 1
  parts: ranges.Many(ranges.Natural) = (2,)
  cache_dir: ranges.Text = ''

  kind, targets = 'behaviours', 'values'

  @property
  def answers(self) -> tuple:
    """The name of the label, of every place of a row."""
    places = range(self.items_per_row)
    return (self.label,) if self.items_per_row == 1 else tuple(f'{self.label}[{at}]' for at in places)

  def content(self) -> dict:
    """Returns what says which data these are, for data.json."""
    room = ('num_items', 'num_queries', 'cache_dir')
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)
            if field.name not in room}

  def shapes(self, rows: int) -> dict:
    """Returns dict name -> (shape, dtype) of a batch."""
    more: dict = dict(query=((rows,), np.int32)) if self.query else {}
    for name, columns, places in (('features', self.numbers, self.items_per_row),
                                  ('history_features', self.history_numbers, self.length)):
      more |= {name: ((rows, places, len(columns)), np.float32)} if columns else {}
    return of_rows(rows, self.items_per_row, self.length) | more

  def lengths(self, model: typing.Any = None) -> dict:
    """Returns dict stack -> positions of a row: its items."""
    return dict(encoder=self.items_per_row, decoder=self.items_per_row)

  def open(self, cfg: ml_collections.ConfigDict, found: records.Record = records.NONE) -> arrays.Opened:
    """Returns the rows; of a run's Record `found` if they are the same."""
    return arrays.Opened(self, found, lambda: _read(self, found.facts(self)))


def of_rows(rows: int, items: int, length: int) -> dict:
  """Returns dict name -> (shape, dtype) of what every batch of behaviours has, of `rows` rows of K items."""
  each, before = (rows, items), (rows, length)
  return dict(items=(each, np.int32), values=(each, np.float32), weights=(each, np.float32),
              history=(before, np.int32), history_weights=(before, np.float32),
              group=((rows,), np.int32), part=((rows,), np.int32))


def _read(source, known):
  """(dict split -> dict name -> array, facts) of the files of a source; `known` are the facts of a run."""
  paths = arrays.paths(source)
  events, held = _events(source, paths)
  order = np.lexsort((events['time'], events['user']))               # by user, then time, then line
  events, held = {name: column[order] for name, column in events.items()}, held[order]
  facts = {}
  events['item'], facts['items'] = _numbered(source, events['item'], held, known.get('items'), 'num_items')
  if source.query:
    events['query'], facts['queries'] = _numbered(source, events['query'], held, known.get('queries'),
                                                  'num_queries')
  for name in [name for name in ('numbers', 'history_numbers') if name in events]:
    facts[name] = known.get(name) or _scales(events[name][~held])
    mean, deviation = np.asarray(facts[name]).T
    events[name] = (events[name] - mean) / deviation
  found = {split: rows(events, np.flatnonzero(chosen & ~np.isnan(events['label'])), source.items_per_row,
                       source.length, source.parts)
           for split, chosen in (('train', ~held), ('validation', held))}
  empty = next((split for split, part in found.items() if not len(part['items'])), None)
  if empty:
    raise errors.UserError(f'{paths[-1]}: the split {empty!r} holds no rows')
  return found, facts


def _events(source, paths):
  """(dict name -> column [N], bool[N] whether held out) of the events of all files."""
  tables = [table.columns(path) for path in paths]
  numbers = lambda name, missing=False: np.concatenate([each.numbers(name, missing) for each in tables])
  names = lambda name: np.concatenate([each.names(name) for each in tables])[:, 0]
  label = numbers(source.label, missing=True)[:, 0]
  chosen = numbers(source.chosen)[:, 0] if source.chosen else label
  for column, values in ((source.label, label), (source.chosen or source.label, chosen)):
    wrong = values[~np.isin(values, (0, 1)) & ~np.isnan(values)]
    if len(wrong):
      raise errors.UserError(f'{paths[0]}: column {column} holds {wrong[0]:g}; it must say by 0 and 1 what '
                             'was chosen')
  user = np.unique(names(source.user), return_inverse=True)[1]
  events = dict(user=user, item=names(source.item), time=numbers(source.time)[:, 0], label=label,
                chosen=chosen == 1)
  for name, columns in (('numbers', source.numbers), ('history_numbers', source.history_numbers)):
    if columns:
      events[name] = np.concatenate([numbers(column) for column in columns], axis=1)
  if source.query:
    events['query'] = names(source.query)
  if len(tables) == 2:
    return events, np.arange(len(user)) >= tables[0].length
  column = tables[0].names(source.split)[:, 0] if source.split else None
  return events, arrays.held_out(paths[0], column, len(user))


def _numbered(source, names, held, known, field):
  """(i64[N] ids from 1 of names [N], their sorted values in training, or those `known`); 0 for others."""
  values = known or sorted(set(names[~held].tolist()))
  if len(values) >= getattr(source, field):
    raise errors.UserError(f'data.{field}={getattr(source, field)}, but there are {len(values) + 1} ids; '
                           f'nearest: data.{field}={len(values) + 1}')
  number = {name: i for i, name in enumerate(values, 1)}
  return np.array([number.get(name, 0) for name in names]), values


def _scales(values):
  """[[mean, deviation]] of each column of values [N,F]."""
  deviation = values.std(0)
  return np.stack([values.mean(0), np.where(deviation > 0, deviation, 1.0)], 1).tolist()


def rows(events: dict, ranked: np.ndarray, items: int, length: int, parts: tuple) -> dict:
  """Returns dict name -> array [rows,...] of the rows of events, which are sorted by user and time.

  Args:
    events: dict of user, item, time, label, chosen [N], and may be numbers and history_numbers [N,F], query
      [N].
    ranked: i64[n], in order, which of the events are ranked.
    items, length, parts: K, M and limits of lengths, as in Behaviours.
  """
  user = events['user']
  first = np.searchsorted(user, user[ranked])                        # of the user, among all events
  new = np.ones(len(ranked), bool)
  new[1:] = np.diff(user[ranked]) != 0
  start = np.maximum.accumulate(np.where(new, np.arange(len(ranked)), 0))
  place = np.arange(len(ranked)) - start                             # of an event among its user's
  row = np.cumsum(place % items == 0) - 1
  made = {name: np.zeros(shape, dtype)
          for name, (shape, dtype) in of_rows(int(row[-1]) + 1 if len(row) else 0, items, length).items()}
  at = row, place % items
  for name, values in (('items', events['item']), ('values', events['label'])):
    made[name][at] = values[ranked]
  made['weights'][at] = 1
  if 'numbers' in events:
    made['features'] = np.zeros((*made['items'].shape, events['numbers'].shape[1]), np.float32)
    made['features'][at] = events['numbers'][ranked]
  told = events.get('history_numbers', np.zeros((len(user), 0)))
  before = np.zeros((*made['history'].shape, told.shape[1]), np.float32)
  heads = np.flatnonzero(place % items == 0)
  made['group'] = user[ranked[heads]].astype(np.int32)
  if 'query' in events:
    made['query'] = events['query'][ranked[heads]].astype(np.int32)
  for number, head in enumerate(heads):
    begin, event = first[head], ranked[head]
    end = begin + np.searchsorted(events['time'][begin:event], events['time'][event])      # of earlier time
    past = begin + np.flatnonzero(events['chosen'][begin:end])[::-1]
    made['part'][number] = sum(len(past) > limit for limit in parts)
    past = past[:length]
    made['history'][number, :len(past)], made['history_weights'][number, :len(past)] = events['item'][past], 1
    before[number, :len(past)] = told[past]
  return made | (dict(history_features=before) if told.shape[1] else {})
