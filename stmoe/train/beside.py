"""The model of another run beside the model that trains, where a target wants to know what it predicts.

The other model's outputs on a batch become the batch's entry `targets.OUTPUTS`. Its states after the blocks
that the target names become entries, too. Like all other entries these are cut into microbatches and split
over devices. The other model is frozen. It runs once per batch, on the whole batch, without randomness. It is
in no checkpoint; a digest of its numbers is.
"""

import hashlib
import json
import pathlib

import jax
from jax.sharding import NamedSharding

from stmoe import axes
from stmoe import errors
from stmoe import modules
from stmoe import targets
from stmoe.checkpoints import checkpoint
from stmoe.checkpoints import checksum
from stmoe.core import hidden
from stmoe.data import record as records
from stmoe.runs import directory as rundir
from stmoe.train import state as states


class Alone:
  """A batch as it is."""

  meta: dict = {}

  def __call__(self, batch: dict) -> dict:
    return batch


class Beside:
  """A batch, dict of arrays [B,...], with what a model gives for it; `meta` is a digest of its numbers.

  Args:
    plan:   the Blueprint of that model.
    state:  that model's parameters and router state.
    blocks: names of the blocks whose states are wanted.
  """

  def __init__(self, plan: states.Blueprint, state: dict, blocks: tuple):
    self._numbers = plan.evaluated(state), state['router_state']
    rows = NamedSharding(plan.mesh, axes.spec(('batch',)))
    self._entries = jax.jit(_entries(plan, blocks), out_shardings=rows)
    facts = json.dumps(checksum.inventory(self._numbers), sort_keys=True)
    self.meta = dict(beside=hashlib.sha256(facts.encode()).hexdigest())

  def __call__(self, batch: dict) -> dict:
    return batch | self._entries(*self._numbers, batch)


def opened(plan: states.Blueprint, vocabulary) -> 'Alone | Beside':
  """Returns what completes the batches of a run: an `Alone`, or the `Beside` that its target wants.

  Raises UserError if there is no such run, or it was trained with another vocabulary.

  Args:
    plan:       the Blueprint of the run that trains.
    vocabulary: of that run's data.
  """
  if not plan.target.run:
    return Alone()
  teacher, folder = _blueprint(plan), pathlib.Path(plan.target.run) / 'checkpoints'
  saved = checkpoint.Checkpoints(folder, keep=None, read_only=True)
  same = lambda meta: rundir.check_same(meta, dict(vocab=vocabulary.digest))
  try:
    _, state, _, _ = saved.restore(teacher.shapes, same, _refuse, plan.target.step)
  except errors.UserError as error:
    raise errors.UserError(f'loss.run={plan.target.run!r}: {error}') from None
  finally:
    saved.close()
  return Beside(teacher, state, _blocks(plan))


def shapes(plan: states.Blueprint, batch: dict) -> dict:
  """Returns `batch`, dict of ShapeDtypeStructs [B,...], with what a target wants of another run."""
  if not plan.target.run:
    return batch
  teacher = _blueprint(plan)
  entries = _entries(teacher, _blocks(plan))
  try:
    return batch | jax.eval_shape(entries, teacher.shapes['params'], teacher.shapes['router_state'], batch)
  except errors.UserError as error:
    raise errors.UserError(f'loss.run={plan.target.run!r}: {error}') from None


def _blueprint(plan):
  """The Blueprint of the run that the target of `plan` names, on the same mesh."""
  try:
    cfg = rundir.opened(plan.target.run, plan.target.step)
    return states.blueprint(records.read(plan.target.run).located(cfg), plan.mesh)
  except errors.UserError as error:
    raise errors.UserError(f'loss.run={plan.target.run!r}: {error}') from None


def _blocks(plan):
  """The names of the blocks of the other model whose states the target of `plan` wants."""
  return getattr(plan.target, 'others', ())


def _entries(plan, blocks):
  """The function (params, router_state, batch) -> entries of the batch, [B,...], of the model of `plan`."""
  def entries(params, routers, batch):
    model = modules.showing(plan.model(params, routers), blocks)
    outputs, reported = model(batch, key=None, train=False)
    found = hidden.apart(reported)[1]
    return {targets.OUTPUTS: outputs} | {targets.states(name): found[name].x for name in blocks}
  return entries


def _refuse(line):
  """Raises UserError, because another checkpoint would be another teacher."""
  raise errors.UserError(line)
