"""Samples images from the trained denoisers of a folder and scores them: RUN/scored.json.

  python -m stmoe.experiments.diffusion_experts.measure runs/diffusion_experts          what is not there yet
  python -m stmoe.experiments.diffusion_experts.measure runs/diffusion_experts FOLDER   then also a table

All models begin at the same noise and have the same classes to draw. The score is that of `stmoe sample`.
"""

import pathlib
import sys

from stmoe import files
from stmoe.answer import samples
from stmoe.experiments import measuring
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
  return measuring.run(words, 'diffusion_experts', complete, table, TABLE)


def complete(folder, runs):
  """Measures those of the directories `runs` that have no score yet."""
  del folder
  for run in runs:
    if not recorded(run):
      found = measure(run)
      print(f'{run.name}: {found["accuracy"]:.1%} of samples are taken for their class', flush=True)


def table(runs):
  """Yields a dict for each of the directories `runs`."""
  for run in runs:
    yield dict(name=run.name.rpartition('-')[0], seed=rundir.opened(run).seed) | recorded(run)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
