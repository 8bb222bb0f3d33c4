"""A run directory: whose it is, what it ran with, and whether it is finished.

config.json  the resolved configuration      env.json  versions, devices, git revision, corpus
DONE         final metrics of a finished run log.txt   what was said while it ran
evals.jsonl  evaluations under other fields  (`stmoe eval --sweep`)
data.json    the data it reads (data/record.py), beside its vocabulary in the folder data
"""

import importlib.metadata
import json
import os
import pathlib
import platform
import re
import subprocess
import sys

import ml_collections

import stmoe
from stmoe import errors
from stmoe import experiment

# What a run may change when it continues: how long, how watched, on what machine.
FREE = ('train.steps', 'train.log_every', 'train.stats_every', 'train.stop_after_bad', 'eval.', 'checkpoint.',
        'profile.', 'mesh.', 'decode.', 'data.cache_dir', 'data.eval_replaced')
# And fields of its layers that act in evaluation only, called so: eval_k, eval_dispatch.
EVALUATION = re.compile(r'blocks\..*\.eval_\w+')
# Fields that runs begun before there were such do not have, with the value that is the same.
YOUNGER = {'data.replaced': 0.0}
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy', 'ml-collections')


def verify(path, cfg):
  """Raises UserError if `path` is the directory of another experiment, naming the fields that differ."""
  if not (pathlib.Path(path) / 'config.json').exists():
    return
  pairs = experiment.diff(load(path), cfg).items()
  said = [f'{field} is {old!r} there and {new!r} here' for field, (old, new) in pairs
          if not free(field) and not (old is experiment.MISSING and new == YOUNGER.get(field))]
  if said:
    more = f' and {len(said) - 4} more' if len(said) > 4 else ''
    raise errors.UserError(f'{path} holds another experiment: {", ".join(said[:4])}{more}; '
                           'choose another --workdir')


def free(field):
  """Returns whether a run may continue with another value of `field`: its training does not depend on it."""
  return field.startswith(FREE) or bool(EVALUATION.fullmatch(field))


def claim(path, cfg):
  """Returns the run directory `path` with `cfg` as its config.json, made if need be, no longer finished."""
  verify(path, cfg)
  path = make(path)
  (path / 'DONE').unlink(missing_ok=True)
  write(path / 'config.json', experiment.to_json(cfg) + '\n')
  return path


def shared(path):
  """Raises UserError unless this process sees the run directory that process 0 has just made."""
  if not (pathlib.Path(path) / 'config.json').exists():
    raise errors.UserError(f'--workdir {path} is not the folder that process 0 sees; the hosts of a job need '
                           'one on a file system they share')


def make(path):
  """Returns the folder `path`, made if need be."""
  path = pathlib.Path(path)
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise errors.UserError(f'--workdir {path}: {error.strerror}') from error
  return path


def load(path):
  """Returns the ConfigDict of run directory `path`; JSON's lists are tuples again."""
  file = pathlib.Path(path) / 'config.json'
  try:
    fields = json.loads(file.read_text(encoding='utf-8'), object_hook=_tuples)
  except FileNotFoundError:
    raise errors.UserError(f'{path} is not a run directory: it has no config.json') from None
  except ValueError as error:
    raise errors.UserError(f'{file} is not JSON: {error}') from None
  return ml_collections.ConfigDict(fields)


def _tuples(fields):
  deep = lambda value: tuple(deep(v) for v in value) if isinstance(value, list) else value
  return {key: deep(value) for key, value in fields.items()}


def identity(cfg):
  """Returns the hash of the fields of `cfg` that a continued run must not change."""
  fields = {field: value for field, value in experiment.flatten(cfg).items()
            if not free(field) and YOUNGER.get(field, experiment.MISSING) != value}
  return experiment.run_id(ml_collections.ConfigDict(fields, convert_dict=False, allow_dotted_keys=True))


def finished(path, cfg):
  """Returns whether the run of `cfg` in `path` has done all its steps, and says so with its result.

  Raises UserError if another experiment is there.
  """
  verify(path, cfg)
  file = pathlib.Path(path) / 'DONE'
  if not file.exists():
    return False
  values = json.loads(file.read_text(encoding='utf-8'))
  if values['step'] < cfg.train.steps:
    return False
  print(f'{path} is finished: {summary(values)}')
  return True


def summary(values):
  """Returns final metrics as one line."""
  parts = [f'{values["step"]:,} steps']
  for key, text in (('loss/ce', 'loss'), ('eval/loss', 'eval loss'), ('eval/bits_per_byte', 'bits per byte')):
    if values.get(key) is not None:
      parts.append(f'{text} {values[key]:.4f}')
  return ', '.join(parts)


def finish(path, metrics):
  """Marks the run as finished with its final metrics."""
  write(pathlib.Path(path) / 'DONE', json.dumps(metrics, indent=2) + '\n')


def add_evaluation(path, step, field, value, values):
  """Adds a line to evals.jsonl: the 'eval/...' metrics `values` of a checkpoint with `field` at `value`."""
  with (pathlib.Path(path) / 'evals.jsonl').open('a', encoding='utf-8') as file:
    file.write(json.dumps(dict(step=step, field=field, value=value) | values) + '\n')


def write(file, text):
  """Writes a file so that it is there whole or as it was before."""
  file = pathlib.Path(file)
  temporary = file.with_name(f'{file.name}.{os.getpid()}.tmp')
  temporary.write_text(text, encoding='utf-8')
  temporary.replace(file)


def check_same(found, mine):
  """Raises UserError if a checkpoint's `meta` is of another vocabulary or configuration.

  Args:
    found, mine: dicts with the hashes `vocab` and `config`; None was not known (imported without one).
  """
  for field, what in (('vocab', 'vocabulary'), ('config', 'configuration')):
    if field in mine and found[field] not in (None, mine[field]):
      raise errors.UserError(f'the checkpoint was trained with another {what} ({found[field][:12]}) than '
                             f'this run has ({mine[field][:12]}); choose another --workdir')


def record_environment(path, name, mesh, parameters, corpus):
  """Writes env.json: what a result has to be read with.

  Args:
    name:       of the experiment.
    parameters: number of parameters.
    corpus:     facts of the data, for JSON.
  """
  import jax                             # the rest of this file answers without it
  device = mesh.devices.flat[0]
  facts = dict(name=name, stmoe=stmoe.__version__, revision=_revision(), python=platform.python_version(),
               platform=platform.platform(), command=sys.argv,
               packages={p: importlib.metadata.version(p) for p in PACKAGES},
               devices=dict(kind=device.device_kind, backend=device.platform, mesh=dict(mesh.shape),
                            processes=jax.process_count(), cpus=os.cpu_count()),
               parameters=parameters, corpus=corpus)
  write(pathlib.Path(path) / 'env.json', json.dumps(facts, indent=2) + '\n')


def _revision():
  """The git revision of this code, '+' if it is changed, or None outside a checkout."""
  git = lambda *words: subprocess.run(['git', '-C', str(pathlib.Path(__file__).parent), *words],
                                      capture_output=True, text=True, check=False)
  try:
    head = git('rev-parse', 'HEAD')
    changed = git('status', '--porcelain', '--untracked-files=no').stdout.strip()
  except OSError:
    return None
  return head.stdout.strip() + ('+' if changed else '') if head.returncode == 0 else None
