"""A sweep file -> its runs, all checked, under ids that do not depend on their order in the file.

A sweep file defines `runs()`, a generator of (name, experiment, overrides) or of dicts with these keys. A
dict may also have `evaluations`, {field: values} under which the trained model is evaluated again (`stmoe
eval --sweep`). It may have `start`, {'run': another run of this file as it stands there, 'flags': of `stmoe
upcycle`}. With 'command' in `start`, 'finetune', that command makes the run, of the experiment that the run
names. With 'command' and 'method' in `start`, such as compress and 'prune:keep=0.5', `stmoe compress` makes
the run. Such a run has the configuration of the run that it starts from: it names no experiment, and
its overrides are of that configuration. A run may have `prepare`, commands of `stmoe` as lists of words that
come before the training; they get the overrides for all runs. {run} in their words and in overrides stands
for the directory of the run, where commands may leave files. Overrides are a dict {'a.b': value} or texts
'a.b=value'. With `runs(arg)` the file has sizes, as experiments have arguments: `capacity_factor:large` is
`runs('large')`.
"""

import dataclasses
import fnmatch
import functools
import hashlib
import importlib.util
import inspect
import json
import pathlib
import re

from stmoe import errors
from stmoe import experiment
from stmoe.runs import directory as rundir
from stmoe.runs import records

PACKAGE = 'stmoe.experiments'
KEYS = ('name', 'experiment', 'overrides', 'evaluations', 'start', 'prepare')
HERE = '{run}'


@dataclasses.dataclass(frozen=True)
class Run:
  """A run of a sweep.

  name:        as the file says; the same for all seeds, or not.
  overrides:   texts 'a.b=value', a text per field, in order of the fields.
  evaluations: texts 'field=value;value;' of `stmoe eval --sweep`.
  steps:       of its training.
  start:       directory that it starts from, and flags of what makes it; () = from scratch.
  after:       id of the run that it starts from, or None.
  made:        (command, method or experiment) of `stmoe` that makes it, ('compress', 'prune:keep=0.5') or
    ('finetune', 'finetune/stdlib'); () = its experiment is upcycled, or trained from scratch.
  prepare:     commands before the training, tuples of words.
  """
  name: str
  experiment: str
  overrides: tuple
  evaluations: tuple
  workdir: pathlib.Path
  steps: int
  start: tuple = ()
  after: str | None = None
  made: tuple = ()
  prepare: tuple = ()

  @property
  def id(self):
    """Name and hash, which are the name of its directory."""
    return self.workdir.name


@dataclasses.dataclass(frozen=True)
class Sweep:
  """The runs of a sweep file; `question` is its name with the argument, for people and directories."""
  question: str
  file: pathlib.Path
  workdir: pathlib.Path
  runs: tuple


def available():
  """Returns dict name -> sweep file of the experiments that have one."""
  spec = importlib.util.find_spec(PACKAGE)
  folders = spec.submodule_search_locations if spec else ()
  files = [file for folder in folders for file in pathlib.Path(folder).glob('*/sweep.py')]
  return {file.parent.name: file for file in sorted(files)}


def load(where, overrides=(), workdir=None, only=None):
  """Returns the Sweep of the file or name `where`, with an argument or not.

  Args:
    where:     'capacity_factor', 'capacity_factor:smoke', 'experiments/capacity_factor/sweep.py:smoke'.
    overrides: texts 'a.b=value' for all runs; they come after the file's overrides.
    workdir:   folder of the run directories; None = runs/ and the name.
    only:      a pattern for the names or ids of the runs that are meant, which bring the runs that they start
      from; None = all.
  Raises:
    UserError: for the first run that cannot start: no such experiment or field, or other contents in its
      directory.
  """
  path, argument = experiment.split(where)
  file = find(path)
  title = file.resolve().parent.name if file.stem == 'sweep' else file.stem
  question = title + (f':{argument}' if argument else '')
  workdir = pathlib.Path(workdir or experiment.default_workdir(question))
  runs = {}
  for number, item in enumerate(items(file, argument), 1):
    run = checked(item, f'{file}, run {number}', overrides, workdir)
    if run.id in runs or run.id[-9:] in {earlier[-9:] for earlier in runs}:
      raise errors.UserError(f'{file}, run {number}: {run.name} is there already, with the same overrides')
    runs[run.id] = run
  for run in runs.values():
    if run.after and run.after not in runs:
      raise errors.UserError(f'{file}: {run.name} starts from {run.after}, which is no run of this file')
  like = lambda run: not only or fnmatch.fnmatch(run.name, only) or fnmatch.fnmatch(run.id, only)
  chosen = _with_starts([run for run in runs.values() if like(run)], runs)
  if not chosen:
    names = [run.name for run in runs.values()]
    raise errors.UserError(f'{file} has no run like {only!r}{errors.nearest(only, names)}' if runs else
                           f'{file}: runs({argument and repr(argument)}) yields nothing')
  return Sweep(question, file, workdir, tuple(run for run in runs.values() if run.id in chosen))


def _with_starts(chosen, runs):
  """The set of the ids of the `chosen` runs and of all that they start from; `runs` is a dict id -> Run."""
  ids = {run.id for run in chosen}
  starts = [runs[run.after] for run in chosen if run.after]
  return ids | (_with_starts(starts, runs) if starts else ids)


def find(where):
  """Returns the path of a sweep file given by path or by the name of its folder in experiments/."""
  if where.endswith('.py'):
    if not pathlib.Path(where).is_file():
      raise errors.UserError(f'no such file: {where}')
    return pathlib.Path(where)
  if where not in available():
    beside = f'; nearest: {where}.py' if pathlib.Path(f'{where}.py').is_file() else ''
    raise errors.UserError(f'no experiment of experiments/ with a sweep.py is called {where!r}'
                           f'{beside or errors.nearest(where, available())} '
                           f'(there are: {", ".join(available())})')
  return available()[where]


def items(file, argument=''):
  """Returns what `runs` of the sweep file yields for `argument`."""
  module = experiment.module_of(file)
  if not callable(getattr(module, 'runs', None)):
    raise errors.UserError(f'{file} defines no runs()')
  takes = bool(inspect.signature(module.runs).parameters)
  if argument and not takes:
    raise errors.UserError(f'{file}: runs() takes no argument, and :{argument} was given')
  with errors.of_file(file):
    return list(module.runs(argument) if argument else module.runs())


def checked(item, where, overrides, workdir):
  """Returns the Run of an item of `runs()`, whose configuration was loaded; UserError if it cannot be."""
  fields = _fields(item)
  if not isinstance(fields, dict) or not {'name'} <= fields.keys() <= {*KEYS} or (
      ('experiment' in fields) == _inherits(fields)):
    raise errors.UserError(f'{where}: {item!r} is neither (name, experiment, overrides) nor a dict of '
                           f'{", ".join(KEYS)}')
  evaluations = tuple(f'{field}={"".join(f"{_text(v)};" for v in values)}'
                      for field, values in fields.get('evaluations', {}).items())
  start, after = (), None
  if 'start' in fields:
    after = _id(fields['start']['run'], overrides)
    start = (str(workdir / after), *fields['start'].get('flags', ()))
  folder, prepare = workdir / _id(fields, overrides), _prepare(fields)
  with_folder = lambda words: tuple(word.replace(HERE, str(folder.resolve())) for word in words)
  config_words = tuple(f'--config.{text}' for text in merge(overrides))
  texts, prepare = with_folder(_texts(fields, overrides)), [(*with_folder(words), *config_words)
                                                            for words in prepare]
  begun, *surgeries = _lineage(fields)
  whole = merge(*(_texts(one, overrides) for one in (begun, *surgeries)), texts)
  try:
    config, _ = _loaded(begun['experiment'], whole)
    for evaluation in evaluations:
      _check_evaluation(begun['experiment'], whole, evaluation)
    if not _made(fields):                # what a command makes of a configuration shows when it has
      _verify(folder, config)
  except errors.UserError as error:
    raise errors.UserError(f'{where} ({fields["name"]}): {error}') from None
  return Run(str(fields['name']), begun['experiment'], texts, evaluations, folder, config.train.steps, start,
             after, _made(fields), tuple(prepare))


def _made(fields):
  """(command, what the command is given) that makes the run with these fields; () without a command."""
  start = fields.get('start', {})
  return (start['command'], start.get('method') or fields['experiment']) if 'command' in start else ()


def _inherits(fields):
  """Whether the run with these fields has the configuration of the run that it starts from."""
  return {'command', 'method'} <= fields.get('start', {}).keys()


def _lineage(fields):
  """The fields of runs: of an experiment, then of what is made of it, those given last."""
  return [*(_lineage(_fields(fields['start']['run'])) if _inherits(fields) else ()), fields]


def _id(item, overrides):
  """The id of a run of the file, with the overrides for all."""
  fields = _fields(item)
  origin = _prepare(fields)
  if 'start' in fields:
    start = fields['start']
    origin = [_id(start['run'], overrides), *_made(fields), *start.get('flags', ()), *origin]
  return identity(fields['name'], _lineage(fields)[0]['experiment'], _texts(fields, overrides), origin)


def _texts(fields, overrides):
  """The overrides of a run, those for all last."""
  return merge(as_texts(fields.get('overrides', ())), overrides)


def _prepare(fields):
  """The commands before the training, lists of words."""
  return [list(map(str, words)) for words in fields.get('prepare', ())]


@functools.lru_cache
def _loaded(name, texts):
  """What `experiment.load` returns, once for all runs that surgeries make of one configuration."""
  return experiment.load(name, texts)


def _verify(folder, config):
  """Raises UserError if `folder` holds another run; an unreadable run stops no other run."""
  try:
    rundir.verify(folder, config)
  except errors.Damaged:
    pass                                 # its training, or its collection, says so


def _fields(item):
  """A run as a dict, if the item is a dict or can be one."""
  return dict(zip(KEYS, item)) if isinstance(item, (tuple, list)) and len(item) == 3 else item


def _check_evaluation(name, texts, evaluation):
  pattern, _, values = evaluation.partition('=')
  config, _ = experiment.load(name, texts)
  for field in experiment.matching(config, pattern):
    for value in filter(None, values.split(';')):
      experiment.override(config, [f'{field}={value}'])


def as_texts(overrides):
  """Returns overrides given as a dict or as texts as a tuple of texts 'a.b=value'."""
  if isinstance(overrides, dict):
    return tuple(f'{field}={_text(value)}' for field, value in overrides.items())
  return tuple(overrides)


def _text(value):
  return value if isinstance(value, str) else repr(value)


def merge(*groups):
  """Returns the texts of all groups in order of their fields; of a field set twice the last counts."""
  last = {}
  for text in (text for group in groups for text in group):
    bare = text.removeprefix('--').removeprefix('config.')
    last[bare.partition('=')[0]] = bare
  return tuple(last[field] for field in sorted(last))


def identity(name, experiment_name, texts, start=()):
  """Returns the id of a run: its name as a file name, and eight digits of what its training depends on."""
  content = [experiment_name, sorted(texts), *([list(start)] if start else [])]
  digest = hashlib.sha1(json.dumps(content).encode()).hexdigest()[:8]
  return f'{re.sub(r"[^A-Za-z0-9_.=+-]+", "_", str(name)).strip("_")[:80]}-{digest}'


def is_trained(run):
  """Returns whether the training of `run` has finished."""
  step = done(run).get('step')
  return step is not None and step >= run.steps


def missing_evaluations(run):
  """Returns the evaluations of a trained run that its last checkpoint has not had, or not completely."""
  lines, step = _readable(records.evaluations, run) or [], done(run).get('step')
  count = lambda field: len({json.dumps(line['value']) for line in lines
                             if line['field'] == field and line['step'] == step})
  return [text for text in run.evaluations
          if count(text.partition('=')[0]) < len(set(filter(None, text.partition('=')[2].split(';'))))]


def is_done(run):
  """Returns whether nothing of `run` is left to do."""
  return is_trained(run) and not missing_evaluations(run)


def done(run):
  """Returns the final metrics of a finished run, {} for an unfinished run."""
  return _readable(records.done, run) or {}


def _readable(read, run):
  """What `read` finds in the directory of `run`, None where it is damaged: who goes on there says so."""
  try:
    return read(run.workdir)
  except errors.Damaged:
    return None
