"""The results of a sweep as one table: a row for each finished run, as CSV and Parquet.

results.csv      id, name, experiment, overrides, seed; a column for every field that any run sets; size and
                 active FLOPs (of a token forward, of a step); sizes as scaling laws count them (`stmoe fit`
                 reads them); all final metrics of DONE. Of a run that starts from another: start/eval/...,
                 its metrics before it trained; of a surgery also bytes of the model and calibration_seconds
evaluations.csv  id, name, seed, field, value and metrics, where trained models were evaluated again
results.json     what the numbers have to be read with: command, revision, machine, seeds
"""

import csv
import dataclasses
import io
import json
import pathlib
import sys

from stmoe import errors
from stmoe import files
from stmoe.analysis import table
from stmoe.analysis.scaling import sizes
from stmoe.runs import directory as rundir
from stmoe.runs import read as runs_lib
from stmoe.runs import records
from stmoe.sweep import plan


@dataclasses.dataclass(frozen=True)
class Result:
  """A finished run: the plan.Run, its directory as an analysis.runs.Run, and its row of the table."""
  run: plan.Run
  data: runs_lib.Run
  row: dict

  @property
  def name(self):
    """The name that the sweep file gives."""
    return self.run.name

  @property
  def seed(self):
    """The seed of its configuration."""
    return self.row['seed']

  def evaluated(self, field, value, metric):
    """Returns a metric of the trained model evaluated with `field` at `value`."""
    as_stored = json.loads(json.dumps(value))
    return next(metrics[metric] for stored, metrics in self.data.sweeps[field] if stored == as_stored)


def values(found, name, metric='eval/loss'):
  """Returns dict seed -> final metric (None if it was not finite) of the results called `name`."""
  return {result.seed: result.row.get(metric) for result in found if result.name == name}


def evaluated(found, name, field, value, metric='eval/loss'):
  """Returns dict seed -> metric of the trained models called `name`, evaluated with `field` at `value`."""
  return {one.seed: one.evaluated(field, value, metric) for one in found if one.name == name}


def results(runs):
  """Returns the Results of the finished runs of `runs`, in order; damaged runs are left out with a note."""
  costs, all_results = {}, []
  for run, data in filter(None, map(_read, runs)):
    config = rundir.load(run.workdir)    # a surgery's is in no file
    teacher = {'loss': data.config['loss'] | {'run': ''}}            # of each seed another, all as large
    same = json.dumps(data.config | {'seed': 0} | teacher, sort_keys=True)
    if same not in costs:                # seeds have one cost, whose calculation builds the model
      costs[same] = table.cost(config) | _sizes(config)
    all_results.append(Result(run, data, row(run, data, costs[same])))
  return all_results


def _read(run):
  """(run, its directory as an analysis.runs.Run), None where it is not done or cannot be read."""
  try:
    if records.done(run.workdir) is None:
      return None
    rundir.trusted(run.workdir)
    data = runs_lib.read(run.workdir)
    return (run, data) if plan.is_done(run) else None
  except errors.UserError as error:
    print(f'note: {run.id} is left out: {error}', file=sys.stderr)
    return None


def _sizes(config):
  """The sizes that `stmoe fit` reads; none where sparse layers differ."""
  try:
    return sizes.of(config)
  except errors.UserError:
    return {}


def row(run, data, cost):
  """Returns dict column -> value of a finished run; `cost` are the columns that follow from its model.

  The directory of the run is written as in the sweep file: a table says nothing of the machine's folders.
  """
  overrides = [text.replace(str(run.workdir.resolve()), plan.HERE) for text in run.overrides]
  fields = dict(text.split('=', 1) for text in overrides)
  fields.pop('seed', None)
  cost = cost | (_began(run, data) if run.start else {})
  return (dict(id=run.id, name=run.name, experiment=run.experiment, overrides=' '.join(overrides),
               seed=data.config.get('seed', 0)) | fields | cost | data.done | cost)


def _began(run, data):
  """The columns of a run that starts from another."""
  first = data.lines[0] if data.lines else {}
  columns = {f'start/{name}': value for name, value in first.items() if name.startswith('eval/')}
  facts = records.ancestry(run.workdir).get('facts', {})
  columns |= dict(bytes=facts['bytes'][-1]) if 'bytes' in facts else {}
  return columns | {name: facts[name] for name in ('calibration_seconds',) if name in facts}


def evaluations(found):
  """Returns a row for each value under which a trained model was evaluated again."""
  return [dict(id=result.run.id, name=result.name, seed=result.seed, field=field,
               value=json.dumps(value)) | metrics
          for result in found for field, pairs in result.data.sweeps.items() for value, metrics in pairs]


def circumstances(found, command):
  """Returns what has to be known of where and how the results came about, for JSON."""
  distinct = lambda *path: sorted({str(_inside(result.data.env, path)) for result in found})
  return dict(command=command, runs=len(found), seeds=sorted({result.seed for result in found}),
              revisions=distinct('revision'), devices=distinct('devices', 'kind'),
              cpus=distinct('devices', 'cpus'), jax=distinct('packages', 'jax'), python=distinct('python'))


def _inside(value, path):
  for key in path:
    value = (value or {}).get(key)
  return value


def write(folder, found, command):
  """Writes the tables into `folder`; returns the paths."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  paths = _write_table(folder / 'results.csv', [result.row for result in found])
  evaluated_again = evaluations(found)
  if evaluated_again:
    paths += _write_table(folder / 'evaluations.csv', evaluated_again)
  facts = folder / 'results.json'
  files.write_json(facts, circumstances(found, command))
  return [*paths, facts]


def _write_table(path, rows):
  """Writes rows, dicts with perhaps different keys, as CSV, and Parquet where pyarrow is; returns paths."""
  columns = list(dict.fromkeys(column for entry in rows for column in entry))
  text = io.StringIO(newline='')
  writer = csv.DictWriter(text, columns)
  writer.writeheader()
  writer.writerows(rows)
  files.write_text(path, text.getvalue())
  try:
    import pyarrow
    from pyarrow import parquet
  except ImportError:                    # the core installs without it
    return [path]
  full = [{column: entry.get(column) for column in columns} for entry in rows]
  content = io.BytesIO()
  parquet.write_table(pyarrow.Table.from_pylist(full), content)
  files.write_bytes(path.with_suffix('.parquet'), content.getvalue())
  return [path, path.with_suffix('.parquet')]
