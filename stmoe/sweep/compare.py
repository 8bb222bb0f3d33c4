"""Several experiments under one budget: the plan, its execution with resumption, its results.

Nothing here trains: `run` is given a function that does. So planning and resuming are
tested without training. A comparison lives in one directory: compare.json (request, plan, and the
results when finished), a run directory per variant and seed, plots/, report.html.
"""

import dataclasses
import hashlib
import json
import pathlib
import re

from stmoe import errors
from stmoe import files
from stmoe.analysis import table
from stmoe.runs import read as runs_lib
from stmoe.runs import records

FILE = 'compare.json'
# The fields of a Job as they are stored.
KINDS = dict(experiment=str, label=str, seed=int, folder=str, steps=int, flops=(int, float), overrides=list,
             cost=dict)
COST = ('parameters', 'active', 'flops_per_token')


@dataclasses.dataclass(frozen=True)
class Variant:
  """A way to train that takes part: the experiment's name with its argument, and a label."""
  experiment: str
  label: str


@dataclasses.dataclass(frozen=True)
class Job:
  """A run of the plan.

  overrides: texts 'a.b=value' that give the run an equal budget and its seed.
  cost: dict(parameters, active, flops_per_token) of its model.
  """
  experiment: str
  label: str
  seed: int
  folder: str
  steps: int
  flops: float
  overrides: tuple
  cost: dict


def expand(names, arguments):
  """Returns the Variants: every name with every argument, or the names alone without arguments.

  >>> [v.experiment for v in expand(['lm/a:smoke'], ['method=dense', 'method=switch'])]
  ['lm/a:smoke,method=dense', 'lm/a:smoke,method=switch']
  """
  variants = []
  for name in names:
    for argument in arguments or ('',):
      full = name + ((',' if ':' in name else ':') + argument if argument else '')
      short = argument.partition('=')[2] or argument
      label = short if len(names) == 1 and short else full if len(names) > 1 else name
      variants.append(Variant(full, label))
  labels = [variant.label for variant in variants]
  if twice := [label for label in dict.fromkeys(labels) if labels.count(label) > 1]:
    raise errors.UserError(f'an experiment is named twice: {", ".join(twice)}')
  return variants


def equal_budget(steps, price):
  """Returns the steps of every variant whose total price comes closest to the first variant's.

  Args:
    steps: steps of the first variant.
    price: list of floats, what one step of each variant costs (FLOPs, seconds).

  >>> equal_budget(100, [2.0, 4.0, 1.9])
  [100, 50, 105]
  """
  return [max(1, round(steps * price[0] / step_price)) for step_price in price]


def plan(variants, seeds, costs, steps):
  """Returns the Jobs, all seeds of a variant together.

  Args:
    variants: list of Variant.
    seeds:    list of ints.
    costs:    a dict(parameters, active, flops_per_token, flops_per_step) per variant.
    steps:    an int per variant.
  """
  jobs = []
  for variant, cost, num_steps in zip(variants, costs, steps):
    for seed in seeds:
      jobs.append(Job(
          experiment=variant.experiment, label=variant.label, seed=seed, steps=num_steps,
          folder=re.sub(r'[^\w.=-]+', '_', variant.label) + (f'_seed{seed}' if len(seeds) > 1 else ''),
          flops=num_steps * cost['flops_per_step'], overrides=(f'train.steps={num_steps}', f'seed={seed}'),
          cost={k: cost[k] for k in COST}))
  folders = [job.folder for job in jobs]
  twice = [job.label for job in jobs if folders.count(job.folder) > 1]
  if twice:
    raise errors.UserError(f'{" and ".join(dict.fromkeys(twice))} would have one folder; rename a file')
  return jobs


def store(workdir, request, jobs):
  """Writes compare.json, whole or not at all; a report of fewer jobs that is there is void.

  Raises UserError if a job that is planned in `workdir` would be another one.
  """
  if (workdir / FILE).exists():
    others = dict.fromkeys(job.label for job in _jobs(_content(workdir / FILE)) if job not in jobs)
    if others:
      raise errors.UserError(f'{workdir} holds another comparison, where {", ".join(others)} had other steps '
                             'or costs; choose another --workdir')
    (workdir / 'report.html').unlink(missing_ok=True)
  content = dict(request=request, jobs=[dataclasses.asdict(job) for job in jobs])
  files.write_json(workdir / FILE, files.plain(content))


def stored(workdir, request):
  """Returns the Jobs planned in `workdir` for `request`; None if they, or some, are yet to be planned.

  A request for more experiments goes on with the comparison of fewer. Raises UserError when the directory
  holds another comparison.
  """
  path = workdir / FILE
  if not (path.exists() or path.is_symlink()):
    return None
  content = _content(path)
  before = content['request']
  changed = [key for key in request if before.get(key) != request[key]]
  if changed == ['experiments'] and _grew(before['experiments'], request['experiments']):
    return None
  if changed:
    raise errors.UserError(f'{workdir} holds another comparison ('
                           f'{_change(changed[0], before.get(changed[0]), request[changed[0]])}); '
                           'choose another --workdir')
  return _jobs(content)


def _grew(before, now):
  """Whether experiments `now` are those `before`, in their order, and more; the first sets the budget."""
  return now[0] == before[0] and [name for name in now if name in before] == before


def _change(key, before, now):
  """A few words on how a field of a request differs."""
  if isinstance(before, list) and isinstance(now, list):
    return f'{key} {errors.difference(list(map(str, before)), list(map(str, now)))}'
  return f'{key}: {json.dumps(before)}, now {json.dumps(now)}'


def _jobs(content):
  """The Jobs in the content of a compare.json."""
  return [Job(**job | {'overrides': tuple(job['overrides'])}) for job in content['jobs']]


def _content(path):
  """The dict in a compare.json: request, jobs and perhaps results."""
  content = files.read_json(path)
  jobs = content.get('jobs')
  jobs = isinstance(jobs, list) and all(map(_is_job, jobs))
  request = content.get('request')
  if not jobs or not isinstance(request, dict) or not isinstance(request.get('experiments'), list):
    raise errors.Damaged(path, 'has not the request and the jobs of a comparison')
  return content


def _is_job(job):
  """Whether `job`, as it was stored, is a job, with a folder inside the comparison's."""
  kinds = isinstance(job, dict) and job.keys() == KINDS.keys() and all(
      isinstance(job[key], kind) and not isinstance(job[key], bool) for key, kind in KINDS.items())
  return (kinds and job['folder'] == pathlib.PurePath(job['folder']).name and
          all(isinstance(text, str) for text in job['overrides']) and
          all(map(records.is_number, job['cost'].values())) and {*job['cost']} == {*COST})


def is_done(workdir, job):
  """Whether the run of `job` has finished."""
  return (workdir / job.folder / 'DONE').exists()


def run(workdir, jobs, train, say):
  """Runs the jobs that are not finished, in order; returns 0, or the exit code of the job that stopped.

  An interrupted job has another exit code than 0: the rest is left for the next call.

  Args:
    workdir: pathlib.Path of the comparison.
    jobs:    list of Job.
    train:   function (Job, run directory) that trains, or goes on training; returns an exit code.
    say:     function of a line of text.
  """
  for number, job in enumerate(jobs, 1):
    if is_done(workdir, job):
      continue
    seed = f', seed {job.seed}' if len({j.seed for j in jobs}) > 1 else ''
    say(f'[{number}/{len(jobs)}] {job.label}{seed}: {job.steps} steps, '
        f'{table.engineering(job.flops)} active FLOPs{_left(workdir, jobs)}')
    code = train(job, workdir / job.folder)
    if code:
      return code
  return 0


def _left(workdir, jobs):
  """'; about 2 min 10 s for all that is left', from what the finished runs took per FLOP."""
  finished = [job for job in jobs if is_done(workdir, job)]
  try:
    seconds = [runs_lib.read(workdir / job.folder).last('time') for job in finished]
  except errors.UserError:
    return ''
  if not finished or None in seconds:
    return ''
  ready = sum(job.flops for job in finished)
  seconds_left = (sum(job.flops for job in jobs) - ready) / ready * sum(seconds)
  return f'; about {table.duration(seconds_left)} for all that is left'


def read_runs(workdir, jobs, say):
  """Returns (runs, labels, costs by run name) of a finished comparison; see `runs.read_all`."""
  of = {(workdir / job.folder).resolve(): job for job in jobs}
  runs = runs_lib.read_all(of, say=say)
  return runs, [of[run.path].label for run in runs], {run.name: of[run.path].cost for run in runs}


def results(runs, labels, costs):
  """Returns dict label -> dict column -> (mean, standard deviation, seeds); see `table.group`."""
  return table.group([table.values(run, costs[run.name]) for run in runs], labels)


def store_results(workdir, grouped):
  """Adds the results to compare.json: per label and column, mean, sd and number of seeds."""
  content = _content(workdir / FILE)
  content['results'] = {
      label: {column: dict(zip(('mean', 'sd', 'seeds'), entry)) for column, entry in row.items() if entry}
      for label, row in grouped.items()}
  files.write_json(workdir / FILE, files.plain(content))


def default_workdir(names, request):
  """Returns 'runs/lm_quickstart' for a single experiment, 'runs/lm_a__lm_b' for several.

  Where something else than the comparison of `request` is there, a hash of the request stands behind.
  """
  plain = pathlib.Path('runs') / '__'.join(re.sub(r'[/:]', '_', name) for name in names)
  digest = hashlib.sha1(json.dumps(request, sort_keys=True).encode()).hexdigest()
  own_folder = plain.with_name(f'{plain.name}-{digest[:8]}')
  if (own_folder / FILE).exists():
    return own_folder
  try:
    there = stored(plain, request) is not None
  except errors.UserError:
    return own_folder
  return plain if there or not plain.exists() or not (plain / 'config.json').exists() else own_folder
