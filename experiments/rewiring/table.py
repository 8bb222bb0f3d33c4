"""The table of README.md from measured.csv: means over seeds, and the spread of what is gained.

  python -m stmoe.experiments.rewiring.table
"""

import csv
import pathlib
import statistics

from stmoe.experiments.rewiring import measure

FILE = pathlib.Path(__file__).parent / 'results' / measure.TABLE
CASE = 'name', 'text', 'setting'
BITS = 'prompts/plain', 'prompts/adapted', 'texts/plain', 'texts/adapted', 'texts/random'


def rows(file=FILE):
  """Returns the rows of measured.csv as dicts of texts."""
  with open(file, encoding='utf-8', newline='') as stream:
    return list(csv.DictReader(stream))


def lines(found):
  """Yields the lines of a Markdown table: a line for each model, text and setting."""
  yield ('| model | text | setting | prompt | adapted | follows | adapted | random | gained | rows improved '
         '| experts changed | cost | seeds |')
  yield '|' + '---|' * 13
  for case in sorted({tuple(row[part] for part in CASE) for row in found}):
    yield _line(case, [row for row in found if tuple(row[part] for part in CASE) == case])


def _line(case, own):
  """The line of a case, of which `own` are the rows."""
  number = lambda column: [float(row[column]) for row in own]
  mean = lambda column, form: format(statistics.fmean(number(column)), form)
  spread = f' ± {statistics.stdev(number("gain")):.4f}' if len(own) > 1 else ''
  cells = [*case, *(mean(column, '.4f') for column in BITS), mean('gain', '+.4f') + spread,
           mean('improved', '.0%'), mean('changed', '.1%'), mean('cost', '.1f'), str(len(own))]
  return f'| {" | ".join(cells)} |'


if __name__ == '__main__':
  print('\n'.join(lines(rows())))
