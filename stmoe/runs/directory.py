"""A run directory: whose it is, what it ran with, and whether it is finished.

config.json  the resolved configuration      env.json  versions, devices, git revision, corpus
DONE         final metrics of a finished run log.txt   what was said while it ran
evals.jsonl  evaluations under other fields  (`stmoe eval --sweep`)
owner.json   the process that writes here, or did last (stmoe/runs/owner.py)
data.json    the data that the run reads (data/record.py), beside its vocabulary in the folder data
"""

import contextlib
import copy
import functools
import hashlib
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
from stmoe import files
from stmoe import sections
from stmoe import value_ranges
from stmoe.runs import owner
from stmoe.runs import plugged
from stmoe.runs import records

# What a run may change when it continues: how long, how watched, on what machine.
FREE = ('train.steps', 'train.log_every', 'train.stats_every', 'train.stop_after_bad', 'eval.', 'checkpoint.',
        'log', 'profile.', 'mesh.', 'decode.', 'data.cache_dir', 'data.eval_replaced')
# It may also change fields of its layers that act in evaluation only, called so: eval_k, eval_dispatch.
EVALUATION = re.compile(r'blocks\..*\.eval_\w+')
# Fields that an identity leaves out at this value, because checkpoints begun before these fields must keep
# theirs.
YOUNGER = {'data.replaced': 0.0, 'loss.name': 'ids'}
# Values that train the same, and what an identity says of either: a run keeps its own when a default changes.
ALIKE = {('model.remat', 'elementwise'): 'none'}
SECTIONS = ('model', 'blocks', 'data', 'train', 'eval')               # that every configuration has
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy', 'ml-collections')


def default(name, cfg, parents=()) -> pathlib.Path:
  """Returns the run directory of `cfg` where nobody names one: the run's own, whatever else was trained.

  That is `experiment.default_workdir` of its name. Where something else is there, a hash of the configuration
  stands behind the name. So the same command finds the same run again.

  parents: run directories that the run is made of.
  """
  plain = pathlib.Path(experiment.default_workdir(name))
  made_of = [str(pathlib.Path(run).resolve()) for run in parents]
  digest = hashlib.sha1(json.dumps([identity(cfg), made_of]).encode()).hexdigest()
  own_folder = plain.with_name(f'{plain.name}-{digest[:8]}')
  return own_folder if is_run(own_folder) or not _free_for(plain, cfg, made_of) else plain


def _free_for(path, cfg, made_of):
  """Whether a folder is not there, or holds the run of `cfg` made of the runs `made_of`, or nothing yet."""
  if not is_run(path):
    return not path.exists() or path.is_dir() and all(f.name.startswith('owner') for f in path.iterdir())
  try:
    verify(path, cfg)
    lineage = records.ancestry(path).get('lineage') or [{}]
  except errors.UserError:
    return False
  parents = [str(pathlib.Path(parent['run']).resolve()) for parent in lineage[0].get('parents', ())]
  return parents == made_of


def verify(path, cfg):
  """Raises UserError if `path` is the directory of another experiment, naming the fields that differ."""
  if not (pathlib.Path(path) / 'config.json').exists():
    return
  pairs = experiment.diff(load(path), sections.completed(cfg)).items()
  changes = [_change(field, old, new) for field, (old, new) in pairs
             if not free(field) and _alike(field, old) != _alike(field, new)]
  if changes:
    more = f' and {len(changes) - 4} more' if len(changes) > 4 else ''
    empty = '' if _begun(path) else f', or remove {path}, which has not made a step'
    raise errors.UserError(f'{path} holds another experiment: {", ".join(changes[:4])}{more}; '
                           f'choose another --workdir{empty}')


def _begun(path):
  """Whether run directory `path` holds a checkpoint, or numbers of a step."""
  lines = pathlib.Path(path) / 'metrics.jsonl'
  return bool(saved(path)) or lines.exists() and lines.stat().st_size > 0


def _alike(field, value):
  return ALIKE.get((field, value), value) if isinstance(value, str) else value


def _change(field, old, new):
  """A few words on how the values of a field differ; of two long lists only what one of them has."""
  lists = isinstance(old, (list, tuple)) and isinstance(new, (list, tuple))
  if lists and max(len(old), len(new)) > errors.LONG:
    return f'{field} has {errors.difference(list(map(str, old)), list(map(str, new)))}'
  return f'{field} is {value_ranges.shown(old)} there and {value_ranges.shown(new)} here'


def free(field):
  """Returns whether a run may continue with another value of `field`: its training does not depend on it."""
  return field.startswith(FREE) or bool(EVALUATION.fullmatch(field))


def claim(path, cfg):
  """Returns the run directory `path` with `cfg` as its config.json, made if need be, no longer finished.

  A run that goes on does not get defaults which its config.json lacks: so it keeps its `identity_of`.
  """
  verify(path, cfg)
  text = experiment.to_json(_as_begun(path, cfg))
  try:
    files.parse_json(text)
  except ValueError as error:
    raise errors.UserError(f'the configuration {error}') from None
  path = make(path)
  (path / 'DONE').unlink(missing_ok=True)
  files.write_text(path / 'config.json', text + '\n')
  return path


def _as_begun(path, cfg):
  """`cfg`, complete but for the defaults that config.json of run directory `path`, if there is one, lacks."""
  cfg = sections.completed(cfg)
  if not (pathlib.Path(path) / 'config.json').exists():
    return cfg
  cfg, begun = copy.deepcopy(cfg), written(path)
  for field in sorted(sections.defaults(cfg)):                       # a group comes before its fields
    *groups, key = field.split('.')
    holder, before = (functools.reduce(_inside, groups, config) for config in (cfg, begun))
    if key in holder and key not in before:
      with holder.unlocked():
        del holder[key]
  return cfg


def _inside(group, name):
  """The group `name` of a group of fields; one without fields where there is none, or `group` is no group."""
  inner = group.get(name, {}) if hasattr(group, 'get') else {}
  return inner if hasattr(inner, 'get') else {}


def planned(path):
  """Returns the train.steps that the run in `path` was begun or continued with, 0 if there is no run."""
  return load(path).train.steps if (pathlib.Path(path) / 'config.json').exists() else 0


@contextlib.contextmanager
def own(path):
  """Gives the Path of run directory `path`, made if need be, into which this process alone writes."""
  path = make(path)
  with owner.hold(path):
    yield path


def shared(path):
  """Raises UserError unless this process sees the run directory that process 0 has just made."""
  if not (pathlib.Path(path) / 'config.json').exists():
    raise errors.UserError(f'--workdir {path} is not the folder that process 0 sees; the hosts of a job need '
                           'one on a file system they share')


def make(path):
  """Returns the folder `path`, made if need be."""
  path = pathlib.Path(path)
  try:
    str(path.absolute()).encode()
  except UnicodeEncodeError:
    raise errors.UserError(f'--workdir {str(path)!r} is not UTF-8: no checkpoint can be there') from None
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise errors.UserError(f'--workdir {path}: {error.strerror}') from error
  return path


def named(name, overrides=()) -> tuple[ml_collections.ConfigDict, str]:
  """Returns (configuration, name) of an experiment, or of a run, which its directory names.

  overrides: see `experiment.override`.
  """
  if not is_run(name) and not experiment.names_one(name):
    raise experiment.unknown_name(name)
  if not is_run(name):
    return experiment.load(name, overrides)
  return experiment.override(load(name).lock(), overrides, whole=False), str(name)


def is_run(name) -> bool:
  """Returns whether `name` is the path of a run directory."""
  return (pathlib.Path(name) / 'config.json').is_file()


def load(path) -> ml_collections.ConfigDict:
  """Returns the ConfigDict of run directory `path`, complete: fields that it lacks have their defaults."""
  cfg = written(path)
  with _whole(path):
    sections.complete(cfg)
  return cfg


def whole(path) -> dict:
  """Returns the dict in config.json of run directory `path` with the defaults it lacks, as JSON has them."""
  fields = records.config(path)
  with _whole(path):
    return json.loads(json.dumps(sections.whole(fields)))


@contextlib.contextmanager
def _whole(path):
  """Turns mistakes in the fields of config.json into errors.Damaged."""
  file = pathlib.Path(path) / 'config.json'
  try:
    yield
  except errors.UserError as error:
    raise errors.Damaged(file, str(error)) from error
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise errors.Damaged(file, files.reason(error)) from error


def written(path) -> ml_collections.ConfigDict:
  """Returns the ConfigDict of run directory `path` as config.json has it; JSON's lists are tuples again."""
  file, fields = pathlib.Path(path) / 'config.json', records.config(path)
  missing = [section for section in SECTIONS if section not in fields]
  if missing:
    hint = '; nearest: a run that stmoe convert makes of this folder' if 'model_type' in fields else ''
    raise errors.Damaged(file, f'has no section {missing[0]}{hint}')
  with _whole(path):
    cfg = ml_collections.ConfigDict(_tuples(fields))
    sections.check(cfg, whole=False)
  return cfg


def _tuples(value):
  if isinstance(value, dict):
    return {key: _tuples(inner) for key, inner in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


def opened(path, step=None, within='checkpoints'):
  """Returns the ConfigDict of run directory `path`, with which its checkpoint was trained.

  Raises UserError if there is no checkpoint, or if config.json is not what it was: changed by hand, or
  damaged. A checkpoint that does not say is checked by the reader of its arrays.

  Args:
    step:   of the checkpoint; None = the newest.
    within: the folder of `path` with the checkpoints; `best` holds a single one, see best.py.
  """
  cfg, saved_steps = load(path), saved(path, within)
  plugged.check(path, cfg)
  if not saved_steps:
    which = 'best checkpoint; set checkpoint.best' if within == 'best' else 'checkpoint yet'
    raise errors.UserError(f'{path} has no {which}')
  at = max(saved_steps) if step is None else step
  try:
    trained = files.read_json(pathlib.Path(path) / within / str(at) / 'meta' / 'metadata').get('config')
  except errors.Damaged:
    return cfg
  mine = identity_of(path)
  if isinstance(trained, str) and trained != mine:
    raise errors.Damaged(pathlib.Path(path) / 'config.json',
                         f'is not the configuration that the checkpoint of step {at:,} was trained with '
                         f'({mine[:12]}, and {trained[:12]} there)')
  return cfg


def saved(path, within='checkpoints'):
  """Returns the steps of the checkpoints in folder `within` of run directory `path`."""
  folder = pathlib.Path(path) / within
  return [int(p.name) for p in folder.iterdir() if p.name.isdecimal()] if folder.is_dir() else []


def trusted(path, step=None):
  """Returns what `opened` does; without any checkpoint the ConfigDict as it is."""
  return opened(path, step) if saved(path) else load(path)


def identity(cfg: ml_collections.ConfigDict) -> str:
  """Returns the hash of the fields of `cfg`, complete, that a continued run must not change."""
  return _digest(sections.completed(cfg))


def identity_of(path) -> str:
  """Returns what checkpoints of run directory `path` say of its config.json: the `identity` of its fields.

  That is not the hash of the complete configuration where config.json, an older one, lacks defaults.
  """
  return _digest(written(path))


def _digest(cfg):
  fields = {field: _alike(field, value) for field, value in experiment.flatten(cfg).items()
            if not free(field) and YOUNGER.get(field, experiment.MISSING) != value}
  return experiment.run_id(ml_collections.ConfigDict(fields, convert_dict=False, allow_dotted_keys=True))


def finished(path, cfg):
  """Returns whether the run of `cfg` in `path` has done all its steps, and says so with its result.

  Raises UserError if another experiment is there.
  """
  verify(path, cfg)
  values = records.done(path)
  if values is None or values['step'] < cfg.train.steps:
    return False
  more = '' if values['step'] == cfg.train.steps else f'; train.steps={cfg.train.steps} are fewer'
  print(f'{path} is finished: {summary(values)}{more}')
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
  files.write_json(pathlib.Path(path) / 'DONE', metrics)


def add_evaluation(path, step, field, value, values):
  """Adds a line to evals.jsonl: the 'eval/...' metrics `values` of a checkpoint with `field` at `value`."""
  files.append_line(pathlib.Path(path) / 'evals.jsonl',
                    files.plain(dict(step=step, field=field, value=value) | values))


def check_same(found, mine):
  """Raises UserError if a checkpoint's `meta` is of another vocabulary or configuration.

  Args:
    found, mine: dicts with the hashes `vocab` and `config`, and with `beside`, of the model of another run,
      where a target wants that model. What is None or absent in `found` was not known: an import has no
      vocabulary, the first checkpoint of a derived run knows of no other model.
  """
  for field, named in (('vocab', 'vocabulary'), ('config', 'configuration'), ('beside', 'model beside it')):
    if field in mine and found.get(field) not in (None, mine[field]):
      raise errors.UserError(f'the checkpoint was trained with another {named} ({found[field][:12]}) than '
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
  text = lambda word: word.encode(errors='replace').decode()         # a name may have bytes that are no UTF-8
  facts = dict(name=text(name), stmoe=stmoe.__version__, revision=_revision(),
               python=platform.python_version(), platform=platform.platform(),
               command=list(map(text, sys.argv)),
               packages={p: importlib.metadata.version(p) for p in PACKAGES},
               devices=dict(kind=device.device_kind, backend=device.platform, mesh=dict(mesh.shape),
                            processes=jax.process_count(), cpus=os.cpu_count()),
               parameters=parameters, corpus=corpus)
  if added := plugged.facts():           # code that this project does not have
    facts['plugins'] = added
  files.write_json(pathlib.Path(path) / 'env.json', files.plain(facts))


def _revision():
  """The git revision of this code, with '+' if the code is changed; None where no repository has the code.

  An environment may lie in the repository of other code.
  """
  here = pathlib.Path(__file__)
  git = lambda *words: subprocess.run(['git', '-C', str(here.parent), *words], capture_output=True, text=True,
                                      check=False)
  try:
    if git('ls-files', '--error-unmatch', here.name).returncode:
      return None
    head = git('rev-parse', 'HEAD')
    changed = git('status', '--porcelain', '--untracked-files=no').stdout.strip()
  except OSError:
    return None
  return head.stdout.strip() + ('+' if changed else '') if head.returncode == 0 else None
