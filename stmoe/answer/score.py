"""Evaluation of a run's checkpoint outside its training."""

import copy

from stmoe import experiment
from stmoe import silence
from stmoe.data import record as records
from stmoe.hosts import job
from stmoe.runs import directory as rundir
from stmoe.runs import records as kept
from stmoe.train import check
from stmoe.train import evaluate
from stmoe.train import opened
from stmoe.train import state as states
from stmoe.train import taskscore


def sweep(cfg, path, field, texts, say, step=None, best=False, devices=None):
  """Yields (value, step, 'eval/...' metrics) of a checkpoint with `field` of `cfg` at each of `texts`.

  The metrics of each value are also added to evals.jsonl of the run. Models of all values are laid out before
  the first is evaluated, so that a wrong value is found at once.

  Args:
    field: 'a.b', or with `*` several fields that all get the value.
    texts: as typed on a command line.
    the rest as for `score`.
  """
  kept.evaluations(path)                 # a file that cannot be read takes no more lines
  fields, changed = experiment.matching(cfg, field), []
  for text in texts:
    changed.append(copy.deepcopy(cfg))
    experiment.override(changed[-1], [f'{name}={text}' for name in fields], whole=False)
    with states.on_mesh(changed[-1].mesh, devices) as mesh:
      check.counts(changed[-1])
      states.blueprint(records.read(path).located(changed[-1]), mesh)
  for changed_cfg in changed:
    value = experiment.flatten(changed_cfg)[fields[0]]
    say(f'{field}={value}')
    at, values = score(changed_cfg, path, say, step, best, devices)
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
    best: the checkpoint that checkpoint.best kept, instead.
  """
  with opened.run(cfg, path, say, devices) as (plan, source):
    facts = source.info()
    at, state, _, _ = opened.restore(plan, path, facts['vocab'], say, step, 'best' if best else 'checkpoints')
    say(f'evaluating the checkpoint of step {at:,}')
    tell = silence.telling(say)
    return at, evaluate.run(cfg, plan, evaluate.make(plan, cfg.eval.draws), state, facts,
                            lambda done, number: tell(f'evaluating {done}/{number}'), source)


def tasks(cfg, path, say, step=None, best=False, devices=None):
  """Returns the record (`taskscore.record`) of a checkpoint of run directory `path` on the tasks of `cfg`.

  best: the checkpoint of `checkpoint.best` instead of step `step`.
  """
  with opened.run(cfg, path, say, devices) as (plan, source):
    scorer = taskscore.Scorer(cfg, plan, source)
    within = 'best' if best else 'checkpoints'
    at, state, _, _ = opened.restore(plan, path, source.info()['vocab'], say, step, within)
    say(f'scoring the checkpoint of step {at:,}')
    tell = silence.telling(say)
    told = lambda done, number: tell(f'scoring the tasks {done}/{number}')
    return taskscore.record(scorer, at, scorer.run(state, told))
