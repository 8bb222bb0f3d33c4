"""The table of README.md from the results: accuracy and loss of every task and their mean, of every method.

  python -m stmoe.experiments.adapters.tasks
"""

import csv
import pathlib
import statistics

from stmoe.experiments.adapters import report
from stmoe.experiments.adapters import sweep

FOLDER = pathlib.Path(__file__).parent / 'results'
ORDER = ('untuned', 'full_from_drawn', *report.METHODS)


def rows(name):
  """Returns the rows of a file of the results as dicts of texts."""
  with open(FOLDER / name, encoding='utf-8', newline='') as stream:
    return list(csv.DictReader(stream))


def lines(scores, losses):
  """Yields the lines of a Markdown table: 'accuracy, loss' of each task, then both means with their spread.

  Args:
    scores, losses: rows of results.csv and of evaluations.csv.
  """
  titles = [task.removeprefix('stdlib_') for task in sweep.TASKS]
  yield f'| method | {" | ".join(titles)} | mean accuracy, % | mean loss, nats | seeds |'
  yield '|' + '---|' * (len(titles) + 4)
  for name in ORDER:
    own, nats = ([row for row in table if row['name'] == name] for table in (scores, losses))
    if not own:
      continue
    by_task = {task: [float(row['eval/loss']) for row in nats if task in row['value']]
               for task in sweep.TASKS}
    cells = [f'{statistics.fmean(float(row[f"{task}/accuracy@rank"]) for row in own):.1f}, '
             f'{statistics.fmean(by_task[task]):.3f}' for task in sweep.TASKS]
    means = [statistics.fmean(values) for values in zip(*by_task.values(), strict=True)]
    accuracy = [float(row[report.ACCURACY]) for row in own]
    yield f'| {name} | {" | ".join(cells)} | {_spread(accuracy, 1)} | {_spread(means, 3)} | {len(own)} |'


def _spread(numbers, digits):
  """'mean ± deviation', without a deviation of one number."""
  spread = f' ± {statistics.stdev(numbers):.{digits}f}' if len(numbers) > 1 else ''
  return f'{statistics.fmean(numbers):.{digits}f}{spread}'


if __name__ == '__main__':
  print('\n'.join(lines(rows('results.csv'), rows('evaluations.csv'))))
