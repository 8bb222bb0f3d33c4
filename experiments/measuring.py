"""The frame of an experiment's measure.py: the trained runs of a folder, a table, errors in one line."""

import csv
import pathlib
import sys

from stmoe import errors


def run(words, title, complete, rows, table):
  """Measures what is missing in the folder that `words` name, writes the table; returns the exit code.

  Args:
    words:    folder of the runs, and perhaps the folder of the table.
    title:    name of the experiment.
    complete: function (folder, runs) that measures what is not there yet; runs are directories.
    rows:     function of the runs -> dicts, rows of the table.
    table:    file name of the table.
  """
  try:
    runs = sorted(done.parent for done in pathlib.Path(words[0]).glob('*/DONE')) if words else []
    if not runs:
      raise errors.UserError(f'give the folder of trained runs: python -m stmoe.experiments.{title}.measure '
                             f'runs/{title}')
    complete(pathlib.Path(words[0]), runs)
    if words[1:]:
      write(pathlib.Path(words[1]) / table, list(rows(runs)))
  except errors.UserError as error:
    print(f'stmoe: {error}', file=sys.stderr)
    return 2
  return 0


def write(path, rows):
  """Writes the dicts `rows` as CSV."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, 'w', encoding='utf-8', newline='') as stream:
    writer = csv.DictWriter(stream, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
