"""The table of a page from its results.csv: of every model the mean of columns, and their spread over seeds.

  python -m stmoe.experiments.spread weak_strong eval/accuracy eval/confidence
"""

import csv
import statistics
import sys

from stmoe import errors
from stmoe.experiments import claims


def rows(question):
  """Returns the rows of the results of a question as dicts of texts; UserError where it has none."""
  file = claims.FOLDER / question / 'results' / 'results.csv'
  if not file.is_file():
    raise errors.UserError(f'{question} has no results{errors.nearest(question, claims.answered())}')
  with open(file, encoding='utf-8', newline='') as stream:
    return list(csv.DictReader(stream))


def lines(found, columns):
  """Yields the lines of a Markdown table: models in their order, 'mean ± deviation' of each column, seeds."""
  unknown = [column for column in columns if column not in found[0]]
  if unknown:
    raise errors.UserError(f'the results have no column {unknown[0]}{errors.nearest(unknown[0], found[0])}')
  yield f'| model | {" | ".join(columns)} | seeds |'
  yield '|' + '---|' * (len(columns) + 2)
  for name in dict.fromkeys(row['name'] for row in found):
    own = [row for row in found if row['name'] == name]
    yield f'| {name} | {" | ".join(cell(own, column) for column in columns)} | {len(own)} |'


def cell(own, column):
  """Returns 'mean ± deviation' of the numbers in a column, a dash where there are none.

  >>> cell([{'x': '1'}, {'x': '2'}, {'x': ''}], 'x'), cell([{'x': ''}], 'x'), cell([{'x': '7'}] * 2, 'x')
  ('1.500 ± 0.707', '–', '7')
  """
  numbers = [float(row[column]) for row in own if row[column]]
  if not numbers:
    return '–'
  if all(number == numbers[0] and number.is_integer() for number in numbers):
    return f'{numbers[0]:,.0f}'
  spread = f' ± {statistics.stdev(numbers):.3f}' if len(numbers) > 1 else ''
  return f'{statistics.fmean(numbers):.3f}{spread}'


def main(words):
  """Prints the table of a command line, QUESTION COLUMN...; returns the exit code."""
  try:
    if len(words) < 2:
      raise errors.UserError('give a question and columns: python -m stmoe.experiments.spread NAME COLUMN...')
    print('\n'.join(lines(rows(words[0]), words[1:])))
  except errors.UserError as error:
    print(f'stmoe: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
