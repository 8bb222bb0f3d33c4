"""Samples images from the trained denoisers of a folder and scores them: RUN/scored.json.

  python -m stmoe.experiments.diffusion_experts.measure runs/diffusion_experts          what is not there yet
  python -m stmoe.experiments.diffusion_experts.measure runs/diffusion_experts FOLDER   then also a table

All models begin at the same noise and have the same classes to draw. The score is that of `stmoe sample`.
"""

import csv
import pathlib
import sys

from stmoe import errors
from stmoe import files
from stmoe.answer import samples
from stmoe.runs import directory as rundir

FILE, TABLE = 'scored.json', 'measured.csv'
NUMBER, STEPS = 500, 50                  # images of a run, Euler's steps


def recorded(run):
  """Returns dict column -> number of what was measured in the directory `run`; {} if nothing was."""
  path = pathlib.Path(run) / FILE
  return files.read_json(path) if path.is_file() else {}


def measure(run):
  """Samples from a run, writes its score and a grid of the first images; returns the score."""
  drawn = samples.draw(rundir.opened(run), run, lambda line: None, number=NUMBER, steps=STEPS)
  samples.write(drawn, run, run / 'samples.png')
  files.write_json(run / FILE, files.plain(drawn.score))
  return drawn.score


def main(words):
  """Measures what is missing in the folder that `words` name; returns the exit code."""
  try:
    runs = sorted(done.parent for done in pathlib.Path(words[0]).glob('*/DONE')) if words else []
    if not runs:
      raise errors.UserError('give the folder of trained runs: python -m stmoe.experiments.diffusion_experts'
                             '.measure runs/diffusion_experts')
    for run in runs:
      if not recorded(run):
        found = measure(run)
        print(f'{run.name}: {found["accuracy"]:.1%} of samples are taken for their class', flush=True)
    if words[1:]:
      write_table(pathlib.Path(words[1]) / TABLE, list(table(runs)))
  except errors.UserError as error:
    print(f'stmoe: {error}', file=sys.stderr)
    return 2
  return 0


def table(runs):
  """Yields a dict for each of the directories `runs`."""
  for run in runs:
    yield dict(name=run.name.rpartition('-')[0], seed=rundir.opened(run).seed) | recorded(run)


def write_table(path, rows):
  """Writes the dicts `rows` as CSV."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, 'w', encoding='utf-8', newline='') as stream:
    writer = csv.DictWriter(stream, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
