"""Run directories as data: what a finished or still running training has written down.

Reads config.json, env.json, metrics.jsonl, router_stats/*.npz, evals.jsonl and DONE. Imports neither
JAX nor matplotlib, so that commands which only look at runs answer at once.
"""

import collections
import dataclasses
import json
import pathlib
import re
import sys

import numpy as np

from stmoe.errors import UserError
from stmoe.runs import directory
from stmoe.runs import records

# What a curve may be drawn against: key of a metrics line -> axis label.
ABSCISSAE = {'step': 'optimizer steps', 'tokens': 'target tokens', 'flops': 'active training FLOPs',
             'time': 'training time (s)'}


@dataclasses.dataclass(frozen=True)
class Run:
  """A run directory.

  lines:  metrics.jsonl as a list of dicts of numbers, in order of steps; see `records.flat`.
  loads:  dict layer name -> (steps i64[n], load f32[n,E]) real tokens per expert.
  states: dict layer name -> dict path in the layer -> (steps i64[n], f32[n,E] or f32[n]) router state.
  done:   the final metrics of a finished run, or None.
  sweeps: dict field -> [(value, 'eval/...' metrics)] of the newest checkpoint that was swept.
  routing: what `stmoe routing` found, or None.
  """
  path: pathlib.Path
  name: str
  config: dict
  env: dict
  lines: list
  loads: dict
  states: dict
  done: dict | None
  sweeps: dict = dataclasses.field(default_factory=dict)
  routing: dict | None = None

  def series(self, key, x='step'):
    """Returns (x, y) f64[n] arrays of metric `key` against `x`, where both were logged."""
    points = [(line[x], line[key]) for line in self.lines if records.is_number(line.get(key)) and x in line]
    if not points:
      return np.zeros(0), np.zeros(0)
    xs, ys = np.array(points, dtype=np.float64).T
    return xs, ys

  def last(self, key):
    """Returns the value logged last for `key`; None where that was not finite, or nothing was logged."""
    logged = [line[key] for line in self.lines if key in line]
    return float(logged[-1]) if logged and records.is_number(logged[-1]) else None

  def layers(self, metric):
    """Returns the names of the sparse layers that logged `moe/<layer>/<metric>`, in order."""
    names = {k.split('/')[1] for line in self.lines for k in line
             if k.startswith('moe/') and k.endswith(f'/{metric}') and k.count('/') == 2}
    return sorted(names)


def read(path, name=None):
  """Returns the Run in directory `path`; UserError when it holds no run.

  Args:
    path: directory with config.json and metrics.jsonl.
    name: shown in figures and tables; the directory's name when None.
  """
  path = pathlib.Path(path)
  loads, states = read_stats(path)
  name = (name or path.resolve().name).encode(errors='replace').decode()     # figures show characters only
  return Run(path=path, name=name, config=directory.whole(path),
             env=records.environment(path), lines=read_lines(path), loads=loads, states=states,
             done=records.done(path), sweeps=read_sweeps(path), routing=records.routing(path))


def read_all(paths, check=lambda path: None, say=lambda line: print(line, file=sys.stderr)):
  """Returns the Runs of `paths`, named so that no two names are equal.

  A run that cannot be read is left out, and a line says so; UserError where none is left.

  Args:
    check: called with the path of each; raises UserError for a run that is not to be trusted.
    say:   called with a line of text.
  """
  paths = [pathlib.Path(p).resolve() for p in paths]
  depth = 1
  while len({p.parts[-depth:] for p in paths}) < len(set(paths)):
    depth += 1
  readable, wrong = [], []
  for path in dict.fromkeys(paths):
    try:
      run = read(path, '/'.join(path.parts[-depth:]))
      check(path)
      readable.append(run)
    except UserError as error:
      wrong.append(error)
  if not readable and wrong:
    raise wrong[0]
  for error_line in wrong:
    say(f'note: a run is left out: {error_line}')
  return readable


def expand(paths):
  """Returns the run directories in `paths`: these themselves, and all runs in folders of runs.

  Raises UserError for a path that is neither.
  """
  directories = []
  for path in map(pathlib.Path, paths):
    inside = sorted(file.parent for file in path.glob('[!.]*/config.json'))
    if not inside and not (path / 'config.json').is_file():
      records.config(path)                                           # says that there is none
    directories += inside if inside and not (path / 'config.json').is_file() else [path]
  return directories


def labels(runs):
  """Returns a label per run, the same for runs of one folder that differ in their seed alone.

  The label is the name without the seed, and without the digits that a sweep adds. Where other runs have this
  label as well, the name of the folder stands before the label. Else the label is the whole name of the first
  run.
  """
  keys = [(run.path.parent, _stem(run.name), json.dumps(run.config | {'seed': 0}, sort_keys=True).replace(
      json.dumps(str(run.path.resolve()))[1:-1], '')) for run in runs]   # files of its own make no other run
  first = {key: run.name for key, run in reversed(list(zip(keys, runs)))}
  choices = {key: (key[1], f'{key[0].name}/{key[1]}') for key in first}
  uses = collections.Counter(text for pair in choices.values() for text in pair)
  label = {key: next((text for text in pair if uses[text] == 1), first[key])
           for key, pair in choices.items()}
  return [label[key] for key in keys]


def _stem(name):
  """A run's name without its seed and hash."""
  return re.sub(r'[-_,.]?seed[-_=]?\d+$', '', re.sub(r'-[0-9a-f]{8}$', '', name)) or name


def read_lines(path):
  """Returns the metrics of run directory `path`, each line as `records.flat` has it, by step; [] without any.

  A resumed run may have logged a step twice: the later line counts.
  """
  by_step = {}
  for line in records.metrics(path):
    by_step.setdefault(line['step'], {}).update(records.flat(line))
  return [by_step[step] for step in sorted(by_step)]


def read_sweeps(path):
  """Returns dict field -> [(value, metrics)] of evals.jsonl, in order of the values; {} without the file.

  Of a field only its newest checkpoint counts, and of a value only the last evaluation.
  """
  by_field = {}
  for line in records.evaluations(path):
    by_field.setdefault(line['field'], {}).setdefault(line['step'], {})[json.dumps(line['value'])] = line
  metrics = lambda line: {key: value for key, value in line.items() if key.startswith('eval/')}
  order = lambda pair: (not records.is_number(pair[0]), pair[0] if records.is_number(pair[0]) else 0)
  return {field: sorted(((line['value'], metrics(line)) for line in steps[max(steps)].values()), key=order)
          for field, steps in by_field.items()}


def read_stats(path):
  """Returns (loads, states) of a Run from the router_stats of run directory `path`."""
  loads, states = {}, {}
  for step, load, state in records.stats(path):
    for layer, row in load.items():
      loads.setdefault(layer, []).append((step, row))
    for layer, values in state.items():
      for name, value in values.items():
        states.setdefault(layer, {}).setdefault(name, []).append((step, value))
  joined = lambda points: (np.array([step for step, _ in points]), np.stack([x for _, x in points]))
  each = lambda found: {name: joined(points) for name, points in found.items()}
  return each(loads), {layer: each(found) for layer, found in states.items()}


def flatten(config, prefix=''):
  """Returns a nested config as a flat dict of dotted keys: {'train.steps': 100, ...}."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, dict):
      flat.update(flatten(value, f'{prefix}{key}.'))
    else:
      flat[f'{prefix}{key}'] = value
  return flat


def differences(configs):
  """Returns dict dotted key -> list of values, one per config, of the keys that differ.

  A key that a config does not have is None in that config's place.
  """
  flats = [flatten(c) for c in configs]
  keys = sorted(set().union(*flats))
  values = {key: [flat.get(key) for flat in flats] for key in keys}
  return {key: v for key, v in values.items() if any(x != v[0] for x in v)}
