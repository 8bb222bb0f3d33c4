"""The columns of a table of runs: what they mean, and how a CSV file becomes arrays.

Three papers call three different things N, so each has a name of its own; a law names the columns it reads.
"""

import csv
import math

import numpy as np

from stmoe import errors

LOSS = 'loss'
OF_A_SWEEP = {LOSS: 'eval/loss'}                      # headings of results.csv, where they are not a law's
MEANING = {
    LOSS: 'final validation loss in nats per token, after the learning rate has come down',
    'n': 'parameters of the model (chinchilla: as counted by whoever fits)',
    'n_dense': 'parameters of the dense model of equal compute per token, without embeddings (clark)',
    'n_total_nonemb': 'all parameters but embeddings and routers (fine_grained)',
    'n_active_incl_emb': 'parameters that a token uses, with both embeddings (joint)',
    'tokens': 'training tokens',
    'experts': 'experts of a sparse layer; 1 for a dense model',
    'granularity': 'd_ff over the width of an expert',
    'expansion': 'parameters of all experts of a layer over those of its dense layer',
    'x': 'the size that a power law is fitted against: FLOPs, parameters, throughput',
}


def read(path, columns, renamed=(), by=None):
  """Returns dict group -> dict column -> f64[R]: the rows of a CSV file with a heading.

  Args:
    path:    pathlib.Path; of a folder, its results.csv, or that of its folder report.
    columns: names of the columns that are wanted; all of their values must be finite and above 0.
    renamed: dict column -> heading of the file, for columns with another heading there. Without it a column
      that the file lacks is the one of `OF_A_SWEEP`.
    by:      heading whose values make the groups; None makes one group ''.
  Raises UserError: no such file or heading, a cell that is no positive number.
  """
  path = _table(path)
  headings, rows = _cells(path)
  renamed = dict(renamed)
  for column in renamed:
    if column not in columns:
      raise errors.UserError(f'--column {column}: the law has no such column'
                             f'{errors.nearest(column, columns)} (it has: {", ".join(columns)})')
  heading_of = {column: renamed.get(column) or _heading(column, headings) for column in columns}
  for heading in heading_of.values() if by is None else [*heading_of.values(), by]:
    if heading not in headings:
      meaning = MEANING.get(heading)
      meaning = f': {meaning}; --column {heading}=HEADING names another' if meaning else ''
      there = f': {", ".join(headings)}' if len(headings) <= errors.MANY else f' {len(headings)} columns'
      raise errors.UserError(f'{path} has no column {heading!r}{meaning}{errors.nearest(heading, headings)} '
                             f'(it has{there})')
  groups = {}
  for line, row in rows:
    group = groups.setdefault(row[headings.index(by)] if by else '', {column: [] for column in columns})
    for column, heading in heading_of.items():
      group[column].append(_number(row[headings.index(heading)], path, line, heading))
  return {name: {c: np.array(v) for c, v in group.items()} for name, group in groups.items()}


def _heading(column, headings):
  """The heading of a column: its own name, or what a sweep calls it where only that is there."""
  of_a_sweep = OF_A_SWEEP.get(column)
  return of_a_sweep if column not in headings and of_a_sweep in headings else column


def _table(path):
  """The table that is meant by `path`: itself, or the one that `stmoe sweep --report` wrote into a folder."""
  if not path.is_dir():
    return path
  for file in (path / 'results.csv', path / 'report' / 'results.csv'):
    if file.is_file():
      return file
  raise errors.UserError(f'{path} is a folder without results.csv, which stmoe sweep FILE --report writes')


def _cells(path):
  """(headings, list of (line number, cells)) of a CSV file; rows without any cell are left out."""
  try:
    with open(path, encoding='utf-8-sig', newline='') as file:
      reader = csv.reader(file)
      headings = [text.strip() for text in next(reader, [])]
      rows = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
  except OSError as error:
    raise errors.UserError(f'cannot read {path}: {error.strerror}') from error
  except (UnicodeDecodeError, csv.Error) as error:
    raise errors.UserError(f'{path} is no CSV table: {error}') from error
  if not rows:
    raise errors.UserError(f'{path} has no rows below its headings')
  twice = [h for h in headings if headings.count(h) > 1]
  if twice:
    raise errors.UserError(f'{path} has two columns {twice[0]!r}')
  for line, cells in rows:
    if len(cells) != len(headings):
      raise errors.UserError(f'{path} line {line} has {len(cells)} cells, its heading {len(headings)}')
  return headings, rows


def _number(text, path, line, heading):
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not (math.isfinite(value) and value > 0):
    raise errors.UserError(f'{path} line {line}: {heading}={text.strip()!r} is no finite number above 0; '
                           'take the rows of runs that failed or diverged out of the table')
  return value
