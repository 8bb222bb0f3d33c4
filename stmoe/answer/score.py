"""Evaluation of a run's checkpoint outside its training."""

import contextlib
import copy
import pathlib


from stmoe import errors
from stmoe import experiment
from stmoe.data import batches as pipeline
from stmoe.data import record as records
from stmoe.hosts import job
from stmoe.runs import directory as rundir
from stmoe.train import check
from stmoe.train import checkpoint
from stmoe.train import evaluate
from stmoe.train import loop
from stmoe.train import state as states
from stmoe.train import taskscore


def sweep(cfg, path, field, texts, say, step=None, best=False, devices=None):
  """Yields (value, step, 'eval/...' metrics) of one checkpoint with `field` of `cfg` at each of `texts`.

  What every one gave is also added to evals.jsonl of the run. Models of all values are laid out before the
  first is evaluated, so that a wrong one is found at once.

  Args:
    field: 'a.b', or with `*` several that all get the value.
    texts: as typed on a command line.
    the rest as for `score`.
  """
  rundir.evaluations(path)               # a file that cannot be read takes no more lines
  fields, changed = experiment.matching(cfg, field), []
  for text in texts:
    changed.append(copy.deepcopy(cfg))
    experiment.override(changed[-1], [f'{name}={text}' for name in fields], whole=False)
    with states.on_mesh(changed[-1].mesh, devices) as mesh:
      check.counts(changed[-1])
      states.blueprint(records.read(path).located(changed[-1]), mesh)
  for one in changed:
    value = experiment.flatten(one)[fields[0]]
    say(f'{field}={value}')
    at, values = score(one, path, say, step, best, devices)
    step = step if best else at          # the same checkpoint from now on
    if job.leads():
      rundir.add_evaluation(path, at, field, value, values)
    yield value, at, values


def score(cfg, path, say, step=None, best=False, devices=None):
  """Returns (step, 'eval/...' metrics) of a checkpoint of run directory `path` under `cfg`.

  Args:
    cfg:  the run's configuration; its evaluation fields may differ from the run's.
    say:  called with lines of text.
    step: of the checkpoint; None = the newest.
    best: the checkpoint that checkpoint.best kept instead.
  """
  with _opened(cfg, path, say, devices) as (plan, opened):
    facts = opened.info()
    at, state, _, _ = restore(plan, path, facts['vocab'], say, step, 'best' if best else 'checkpoints')
    say(f'evaluating the checkpoint of step {at:,}')
    return at, evaluate.run(cfg, plan, evaluate.make(plan, cfg.eval.get('draws', 1)), state, facts,
                            opened=opened)


@contextlib.contextmanager
def _opened(cfg, path, say, devices):
  """Gives (Blueprint, `pipeline.source`) of a configuration of run directory `path`, on its mesh."""
  loop.keep_compilations()
  with states.on_mesh(cfg.mesh, devices) as mesh:
    check.batches(cfg)
    plan = states.blueprint(records.read(path).located(cfg), mesh)
    check.forward(cfg, plan)
    opened = job.in_turn(lambda: pipeline.source(cfg, path))
    for line in opened.notes:
      say(line)
    check.vocabulary(cfg, plan, opened.info()['vocab'])
    yield plan, opened


def tasks(cfg, path, say, step=None, best=False, devices=None):
  """Returns the record (`taskscore.record`) of a checkpoint of run directory `path` on the tasks of `cfg`.

  best: the checkpoint of `checkpoint.best` instead of step `step`.
  """
  with _opened(cfg, path, say, devices) as (plan, opened):
    scorer = taskscore.Scorer(cfg, plan, opened)
    within = 'best' if best else 'checkpoints'
    at, state, _, _ = restore(plan, path, opened.info()['vocab'], say, step, within)
    say(f'scoring the checkpoint of step {at:,}')
    return taskscore.record(scorer, at, scorer.run(state))


def restore(plan, path, vocabulary, say, step=None, within='checkpoints'):
  """Returns (step, state, data position, meta) of a checkpoint of run directory `path`, which is not changed.

  Raises UserError if there is none, or it was trained with another vocabulary.

  Args:
    plan:       the Blueprint of the run's configuration.
    vocabulary: of the data.
    say, step:  see `score`.
    within:     the folder of `path` with the checkpoints; `best` holds one, see best.py.
  """
  folder = pathlib.Path(path) / within
  found = None
  if folder.is_dir():
    saved = checkpoint.Checkpoints(folder, keep=None, read_only=True)
    found = saved.restore(plan.shapes, lambda meta: rundir.check_same(meta, dict(vocab=vocabulary.digest)),
                          say, step)
    saved.close()
  if found is None:
    which = 'best checkpoint; set checkpoint.best' if within == 'best' else 'checkpoint yet'
    raise errors.UserError(f'{path} has no {which}')
  return found
