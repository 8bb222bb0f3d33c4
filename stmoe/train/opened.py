"""A run that is there: its model and data laid out again, and one of its checkpoints."""

import contextlib
import pathlib

from stmoe import errors
from stmoe.checkpoints import checkpoint
from stmoe.data import batches as pipeline
from stmoe.data import record as records
from stmoe.hosts import job
from stmoe.runs import directory as rundir
from stmoe.train import check
from stmoe.train import loop
from stmoe.train import state as states


@contextlib.contextmanager
def run(cfg, path, say, devices):
  """Gives (Blueprint, `pipeline.source`) of a configuration of run directory `path`, on the run's mesh."""
  loop.keep_compilations()
  with states.on_mesh(cfg.mesh, devices) as mesh:
    check.batches(cfg)
    plan = states.blueprint(records.read(path).located(cfg), mesh)
    check.forward(cfg, plan)
    source = job.in_turn(lambda: pipeline.source(cfg, path))
    for line in source.notes:
      say(line)
    check.vocabulary(cfg, plan, source.info()['vocab'])
    yield plan, source


def restore(plan, path, vocabulary, say, step=None, within='checkpoints'):
  """Returns (step, state, data position, meta) of a checkpoint of run directory `path`, which is not changed.

  The state's parameters are those that evaluation reads.

  Raises UserError if there is no checkpoint, or it was trained with another vocabulary.

  Args:
    plan:       the Blueprint of the run's configuration.
    vocabulary: of the data.
    say:        called with lines of text about anything unusual.
    step:       of the checkpoint; None = the newest.
    within:     the folder of `path` with the checkpoints; `best` holds a single one, see best.py.
  """
  folder = pathlib.Path(path) / within
  restored = None
  if folder.is_dir():
    same = lambda meta: rundir.check_same(meta, dict(vocab=vocabulary.digest))
    with contextlib.closing(checkpoint.Checkpoints(folder, keep=None, read_only=True)) as saved:
      restored = saved.restore(plan.shapes, same, say, step)
  if restored is None:
    which = 'best checkpoint; set checkpoint.best' if within == 'best' else 'checkpoint yet'
    raise errors.UserError(f'{path} has no {which}')
  at, state, position, meta = restored
  return at, state | dict(params=plan.evaluated(state)), position, meta
