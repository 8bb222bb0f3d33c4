"""Run directories as data: what a finished or still running training has written down.

Reads config.json, env.json, metrics.jsonl, router_stats/*.npz, evals.jsonl and DONE. Imports neither
JAX nor matplotlib, so that commands which only look at runs answer at once.
"""

import collections
import dataclasses
import json
import pathlib
import re

import numpy as np

from stmoe.errors import UserError

# What a curve may be drawn against: key of a metrics line -> axis label.
ABSCISSAE = {'step': 'optimizer steps', 'tokens': 'target tokens', 'flops': 'active training FLOPs',
             'time': 'training time (s)'}


@dataclasses.dataclass(frozen=True)
class Run:
  """One run directory.

  lines:  metrics.jsonl as a list of dicts, in order of steps.
  loads:  dict layer name -> (steps i64[n], load f32[n,E]) real tokens per expert.
  states: dict layer name -> dict path in the layer -> (steps i64[n], f32[n,E] or f32[n]) router state.
  done:   the final metrics of a finished run, or None.
  sweeps: dict field -> [(value, 'eval/...' metrics)] of the newest checkpoint that was swept.
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

  def series(self, key, x='step'):
    """Returns (x, y) f64[n] arrays of metric `key` against `x`, where both were logged."""
    points = [(line[x], line[key]) for line in self.lines if _is_number(line.get(key)) and x in line]
    if not points:
      return np.zeros(0), np.zeros(0)
    xs, ys = np.array(points, dtype=np.float64).T
    return xs, ys

  def last(self, key):
    """Returns the last finite value logged for `key`, or None."""
    _, ys = self.series(key)
    return float(ys[-1]) if len(ys) else None

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
  if not (path / 'config.json').is_file():
    near = sorted(p.parent.name for p in path.glob('*/config.json'))
    hint = f'; it has the runs {", ".join(near)} inside' if near else ''
    raise UserError(f'{path} is not a run directory (no config.json){hint}')
  return Run(path=path, name=name or path.resolve().name, config=_json(path / 'config.json'),
             env=_json(path / 'env.json') or {}, lines=read_lines(path / 'metrics.jsonl'),
             loads=read_loads(path / 'router_stats'), states=read_states(path / 'router_stats'),
             done=_json(path / 'DONE'), sweeps=read_sweeps(path / 'evals.jsonl'))


def read_all(paths):
  """Returns the Runs of `paths`, named so that no two names are equal."""
  paths = [pathlib.Path(p).resolve() for p in paths]
  depth = 1
  while len({p.parts[-depth:] for p in paths}) < len(set(paths)):
    depth += 1
  return [read(p, '/'.join(p.parts[-depth:])) for p in dict.fromkeys(paths)]


def expand(paths):
  """Returns the run directories in `paths`: these themselves, and all in those that are folders of runs."""
  found = []
  for path in map(pathlib.Path, paths):
    inside = sorted(file.parent for file in path.glob('*/config.json'))
    found += inside if inside and not (path / 'config.json').is_file() else [path]
  return found


def labels(runs):
  """Returns one label per run, the same for runs of one folder that differ in their seed alone.

  It is the name without the seed, and without the digits that a sweep adds; where others have it as well,
  with the name of the folder before it, or else the whole name of the first.
  """
  keys = [(run.path.parent, _stem(run.name), json.dumps(run.config | {'seed': 0}, sort_keys=True).replace(
      json.dumps(str(run.path.resolve()))[1:-1], '')) for run in runs]   # files of its own make no other run
  first = {key: run.name for key, run in reversed(list(zip(keys, runs)))}
  choices = {key: (key[1], f'{key[0].name}/{key[1]}') for key in first}
  taken = collections.Counter(text for pair in choices.values() for text in pair)
  label = {key: next((text for text in pair if taken[text] == 1), first[key])
           for key, pair in choices.items()}
  return [label[key] for key in keys]


def _stem(name):
  """A run's name without its seed and hash."""
  return re.sub(r'[-_,.]?seed[-_=]?\d+$', '', re.sub(r'-[0-9a-f]{8}$', '', name)) or name


def read_lines(path):
  """Returns the objects of a jsonl file ordered by step; [] when it does not exist.

  A resumed run may have logged a step twice: the later line counts. A last line cut short
  by a kill is left out.
  """
  if not path.is_file():
    return []
  by_step = {}
  for text in path.read_text(encoding='utf-8').splitlines():
    try:
      line = json.loads(text)
    except json.JSONDecodeError:
      continue
    by_step.setdefault(line.get('step', 0), {}).update(line)
  return [by_step[step] for step in sorted(by_step)]


def read_sweeps(path):
  """Returns dict field -> [(value, metrics)] of evals.jsonl, in order of the values; {} when there is none.

  Of a field only its newest checkpoint counts, and of a value the last evaluation.
  """
  texts = path.read_text(encoding='utf-8').splitlines() if path.is_file() else []
  found = {}
  for line in map(json.loads, texts):
    found.setdefault(line['field'], {}).setdefault(line['step'], {})[json.dumps(line['value'])] = line
  metrics = lambda line: {key: value for key, value in line.items() if key.startswith('eval/')}
  order = lambda pair: (not _is_number(pair[0]), pair[0] if _is_number(pair[0]) else 0)
  return {field: sorted(((line['value'], metrics(line)) for line in steps[max(steps)].values()), key=order)
          for field, steps in found.items()}


def read_loads(folder):
  """Returns dict layer -> (steps i64[n], load f32[n,E]) of router_stats/<step>.npz files."""
  points = {}
  for file in _stats(folder):
    with np.load(file) as stats:
      loads = stats['moe_load']                                      # [L, E], padded with NaN
      names = [str(name) for name in stats['layers']]
      for layer, load in zip(names, loads):
        points.setdefault(layer, []).append((int(file.stem), load[np.isfinite(load)]))
  return {layer: (np.array([s for s, _ in p]), np.stack([load for _, load in p]))
          for layer, p in points.items()}


def read_states(folder):
  """Returns dict layer -> dict path -> (steps i64[n], f32[n,E] or f32[n]), the state in router_stats."""
  points = {}
  for file in _stats(folder):
    with np.load(file) as stats:
      for key in (k for k in stats.files if k.startswith('state/')):
        _, layer, path = key.split('/')
        points.setdefault(layer, {}).setdefault(path, []).append((int(file.stem), stats[key]))
  joined = lambda p: (np.array([step for step, _ in p]), np.stack([value for _, value in p]))
  return {layer: {path: joined(p) for path, p in found.items()} for layer, found in points.items()}


def _stats(folder):
  """The router_stats files in order of steps, without what is being written."""
  return sorted((f for f in folder.glob('*.npz') if f.stem.isdigit()), key=lambda f: int(f.stem))


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

  A key that a config does not have is None there.
  """
  flats = [flatten(c) for c in configs]
  keys = sorted(set().union(*flats))
  values = {key: [flat.get(key) for flat in flats] for key in keys}
  return {key: v for key, v in values.items() if any(x != v[0] for x in v)}


def _json(path):
  return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else None


def _is_number(value):
  return isinstance(value, (int, float)) and np.isfinite(value)
