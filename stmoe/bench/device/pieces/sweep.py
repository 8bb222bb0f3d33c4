"""One sweep of experiments/ at its `large` size: runs of a minute or two on such a GPU, in bfloat16.

The three seeds of a model share the GPU. A run that was stopped goes on in the next call, where its
directory in runs/ is still there.
"""

import functools
import pathlib

from stmoe.bench.device import pending
from stmoe.bench.device import markdown
from stmoe.runs import read as runs
from stmoe.runs import records as saved

WORTH = 7
SWEEP, MODELS = 'fine_grained', ('dense', 'top2', 'shared_4', 'shared_8', 'shared_2')
SEEDS = 3
WORKDIR = pathlib.Path('runs') / 'device'
COLUMNS = ('model', 'run', 'evaluation loss', 'target tokens', 'seconds')


def jobs(dry):
  """Returns a Command for each model; a dry run trains nothing, and lists one."""
  size = 'smoke' if dry else 'large'
  more = ['--list'] if dry else ['--launcher', f'local:jobs={SEEDS}']

  def command(model):
    folder = WORKDIR / f'{SWEEP}_{size}'
    words = ('-m', 'stmoe.cli.main', 'sweep', f'{SWEEP}:{size}', '--only', model, '--workdir', str(folder))
    return pending.Command(f'sweep {model}', 150, (*words, *more), functools.partial(read, folder, model),
                           dict(XLA_PYTHON_CLIENT_MEM_FRACTION=str(0.8 / SEEDS)), alone=True)
  return [command(model) for model in (MODELS[:1] if dry else MODELS)]


def read(folder, model, code, text):
  """Returns a row for each run of `model` in `folder` that is done; raises Failed, with them, with a code."""
  paths = [path for path in sorted(folder.glob(f'{model}-*')) if saved.done(path) is not None]
  rows = [dict(run=path.name, loss=run.last('eval/loss'), tokens=run.last('tokens'), seconds=run.last('time'))
          for path, run in zip(paths, map(runs.read, paths))]
  if code:
    lines = [line for line in text.splitlines() if line.strip()]
    raise pending.Failed(f'the sweep ended with {code}: {"".join(lines[-1:])}', rows)
  return rows


def table(records):
  """Returns a table with a row per run."""
  number = lambda value, form: '' if value is None else format(value, form)
  return markdown.of(COLUMNS, [
      (name.partition(' ')[2], row['run'], number(row['loss'], '.4f'), number(row['tokens'], ',.0f'),
       number(row['seconds'], '.0f')) for name, record in records.items() for row in record['rows']])
