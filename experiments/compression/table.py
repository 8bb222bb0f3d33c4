"""The table of README.md from results.csv: bits per byte at once and after tuning, size, cost of calibration.

  python -m stmoe.experiments.compression.table              every share
  python -m stmoe.experiments.compression.table 0.5 1.0      the shares named
"""

import csv
import pathlib
import statistics
import sys

from stmoe.experiments.compression import report
from stmoe.experiments.compression import sweep

FILE = pathlib.Path(__file__).parent / 'results' / 'results.csv'


def rows(file=FILE):
  """Returns the rows of results.csv as dicts of texts."""
  with open(file, encoding='utf-8', newline='') as stream:
    return list(csv.DictReader(stream))


def lines(found, shares=()):
  """Yields the lines of a Markdown table: methods by share and start, means over seeds and their spread.

  shares: those shown; () = all.

  Tuned scores without a share, of `report.FILLED`, stand in brackets.
  """
  yield '| share | method | start | at once | tuned | stored | active | calibration, s | seeds |'
  yield '|' + '---|' * 9
  names = {name for row in found if not (name := row['name']).endswith(('stage1', *sweep.STARTS))}
  methods = [method for family in report.FAMILIES.values() for method in family]
  cells = [(share, start, method, name) for name in names for start in sweep.STARTS for method in methods
           if (share := sweep.share(name, start, method)) is not None and (not shares or share in shares)]
  order = lambda cell: (-cell[0], list(sweep.STARTS).index(cell[1]), _tuned(found, cell[3]))
  for share, start, method, name in sorted(cells, key=order):
    mine = [row for row in found if row['name'] == name]
    tuned = _mean(mine, report.TUNED)
    tuned = f'({tuned})' if method in report.FILLED else tuned
    yield (f'| {share:g} | {method} | {start} | {_mean(mine, report.AT_ONCE)} | {tuned} '
           f'| {_whole(mine, "parameters")} | {_whole(mine, "active")} '
           f'| {_mean(mine, "calibration_seconds", 1)} | {len(mine)} |')


def _numbers(found, column):
  return [float(row[column]) for row in found if row.get(column)]


def _tuned(found, name):
  return statistics.fmean(_numbers([row for row in found if row['name'] == name], report.TUNED))


def _mean(found, column, digits=3):
  """'2.345 ± 0.012' of the seeds, without a spread of one seed or of `digits` below 3."""
  numbers = _numbers(found, column)
  if not numbers:
    return '–'
  spread = f' ± {statistics.stdev(numbers):.{digits}f}' if len(numbers) > 1 and digits > 2 else ''
  return f'{statistics.fmean(numbers):.{digits}f}{spread}'


def _whole(found, column):
  return f'{statistics.fmean(_numbers(found, column)):,.0f}'


if __name__ == '__main__':
  print('\n'.join(lines(rows(), [float(word) for word in sys.argv[1:]])))
