"""What a model is to predict, and how far its outputs are from that: a kind of target is a file.

`loss.name` of a configuration names the file; absent, it is 'ids'. The other fields of section `loss` are
the fields of its class. A step, an evaluation and a report know of a target only what `Target` says.
"""

import functools
import typing
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from stmoe import errors
from stmoe import lookup
from stmoe import modules
from stmoe.core import checked
from stmoe.core import contract
from stmoe.core import hidden


class Measure(NamedTuple):
  """What a number of metrics.jsonl is.

  unit:   of the number, '' for none.
  better: 'lower' or 'higher'.
  said:   how a line of text has the value: '{:.1%} correct'; '' for not at all.
  of_bytes: whether only texts have it whose scored bytes are known, see `num_bytes` of data/batches.py.
  of:     the entry of `judge` that it is made of, where not all data and models have that entry.
  """
  unit: str
  better: str = 'lower'
  said: str = ''
  of_bytes: bool = False
  of: str = ''


class Target(Protocol):
  """One kind of target; an object of its class is called like this, with [B,...] arrays of one batch.

  All sums are over the rows of a part of a batch, so that microbatches and devices add up to the whole.

  kinds:    which `targets` of models and of sources of data this kind can judge.
  measures: dict name in metrics.jsonl -> Measure. The first 'loss/...' is what training makes smaller, the
    first 'eval/...' is the same of a held-out split.
  passes:   how often a training step runs the model on a batch, with a key each.
  run:      the run directory of another model, or ''. That model's outputs on every batch are then wanted as
    the batch's entry OUTPUTS. A target with `run` has `step`, too: of the checkpoint, None = the newest.

  A target may have more:
  hidden:   names of the blocks whose states the target judges, too. Outputs are then a `Seen`, and counts a
    pair: what `counts` gives, and the real tokens of every stack in the whole batch, dict name -> f32[].
  others:   names of the blocks of the model of `run` whose states are wanted as entries `states(name)`.
  posed:    (batch) -> the batch as the model has it, where that is not what the data say: noisy images.
  at:       (step i32[]) -> the target as it is in that step of training, where its loss changes with steps.
  fits:     (facts) -> None; raises UserError for data that the target cannot judge, from their facts (see
    `info` of data/batches.py), before training.
  predict:  (model, batch, key, train, **context) -> (outputs, aux), where the target itself runs the model,
    several times or on batches that it changes. Outputs are then what its `loss` and `judge` take.
  forwards: operations of a training step in those of `passes` = 1, where the target runs the model otherwise.
  pictures: (outputs, batch) -> dict name -> arrays [n,...] of the first rows of a held-out batch, for people:
    a file of `analysis/figures` draws them.
  reader:   (d_model, rngs) -> a module, parameters of the target's own that train with the model, or None.
    The module is called with the states of `hidden` and returns what `Seen` holds.
  """
  kinds: tuple
  measures: dict
  passes: int
  run: str

  def weights(self, batch: dict) -> jax.Array:
    """Returns f32[...], the weight of each target in the loss; 0 = no target is there."""

  def counts(self, batch: dict) -> typing.Any:
    """Returns what sums are divided by, a tree of arrays of the whole batch; 1 where no target is there."""

  def loss(self, outputs: jax.Array, batch: dict, counts: typing.Any) -> tuple:
    """Returns (f32[], dict name of `measures` -> f32[]) of a part of a batch: they add up over the parts.

    Args:
      outputs: of the model, [B,...]; of several passes [P,B,...].
      batch:   the part.
      counts:  of `counts` for the whole batch.
    """

  def judge(self, outputs: jax.Array, batch: dict) -> dict:
    """Returns dict name -> sums [...] of a batch, from which `metrics` makes the numbers of a split.

    What is needed of every row, and does not add up, is `Rows`.
    """

  def metrics(self, totals: dict) -> dict:
    """Returns dict 'eval/...' -> float of a split; under SHOWN, if there, dict name -> array for figures.

    Args:
      totals: what `judge` gave, added up over the split, and `weight`, the sum of `weights`. `Rows` are
        those of the whole split. Of a text whose tokens are all targets also `bytes_per_token`.
    """


def counts(target: Target, model: typing.Any, batch: dict) -> typing.Any:
  """Returns what a target's sums over the parts of a whole batch [B,...] are divided by; see `Target`."""
  own = target.counts(batch)
  return (own, model.count_tokens(batch)) if getattr(target, 'hidden', ()) else own


def at(target: Target, step: jax.Array) -> typing.Any:
  """Returns `target` as it is in training step `step` i32[]; see `Target`."""
  return target.at(step) if hasattr(target, 'at') else target


def posed(target: Target, batch: dict) -> dict:
  """Returns a batch [B,...] as the model has it; see `Target`."""
  return target.posed(batch) if hasattr(target, 'posed') else batch


def predict(target: Target, model: typing.Any, batch: dict, **context) -> tuple:
  """Returns (what a target judges of `model`, aux: dict layer -> Aux) for a batch [B,...].

  That are the model's outputs [B,...], and for a target that judges states, too, a `Seen`. Where the batch
  says how its tokens are routed (`contract.ROUTES`), the routers of `model` are told.
  """
  if any(name.endswith(f'_given/{contract.ROUTES}') for name in batch):
    told = functools.partial(lookup.constructor('router', 'replay'), source=contract.ROUTES)
    model = modules.wrapped(model, told)
  batch = posed(target, batch)
  if hasattr(target, 'predict'):
    return target.predict(model, batch, **context)
  wanted = getattr(target, 'hidden', ())
  if not wanted:
    return _answer(model, batch, context)
  outputs, reported = modules.showing(model, wanted)(batch, **context)
  aux, found = hidden.apart(reported)
  read = getattr(model, modules.READER, None)
  return Seen(outputs, found if read is None else read(found)), aux


def _answer(model, batch, context):
  """What `model` answers; raises UserError, with the model's file, unless that is (outputs, aux)."""
  given = model(batch, **context)
  if not isinstance(given, tuple) or len(given) != 2 or not isinstance(given[1], dict):
    raise errors.UserError(f'{checked.file(model)}: it returned {checked.told(given)}; wanted: (outputs '
                           '[B,...], dict layer name -> Aux)')
  return given


def loss(target: Target, outputs: typing.Any, batch: dict, counts: typing.Any) -> tuple:
  """Returns `target.loss`; raises UserError, with the target's file, where that is not as `Target` says."""
  given = target.loss(outputs, batch, counts)
  pair = isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], dict)
  named = {'the loss': given[0], **given[1]} if pair else {}
  parts = {f'{name} as ': value for name, value in named.items()} or {'': given}
  for name, value in parts.items():
    if not pair or getattr(value, 'shape', None) != ():
      raise errors.UserError(f'{checked.file(target)}: loss returned {name}{checked.told(value)}; wanted: '
                             '(loss f32[], dict name -> f32[])')
  return given


def judge(target: Target, outputs: typing.Any, batch: dict) -> dict:
  """Returns `target.judge`; raises UserError, with the target's file, unless that is a dict."""
  given = target.judge(outputs, batch)
  if not isinstance(given, dict):
    raise errors.UserError(f'{checked.file(target)}: judge returned {checked.told(given)}; wanted: dict name '
                           '-> sums of the batch')
  return given


def divisor(weights: jax.Array) -> jax.Array:
  """Returns f32[], the sum of weights f32[...] of a whole batch, 1 where the sum is 0."""
  total = jnp.sum(weights)
  return jnp.where(total > 0, total, 1.0)


def first(measures: dict, part: str) -> str:
  """Returns the first name of `measures` in `part`: of 'loss/' what training makes smaller, or 'eval/'."""
  return next(name for name in measures if name.startswith(part))


class Rows(NamedTuple):
  """Arrays [B,...] with an entry for every row of a batch, which `judge` returns among its sums.

  Evaluation puts those of all batches one after the other. Rows that fill up the last batch are there, too:
  their weights are 0.
  """
  values: typing.Any


def together(parts: list[dict]) -> dict:
  """Returns what `judge` says of a split, sums [...] and `Rows` [B,...], from what it says of its parts."""
  def join(*found):
    if isinstance(found[0], Rows):
      return Rows(np.concatenate([rows.values for rows in found]))
    return functools.reduce(np.add, found)
  return jax.tree.map(join, *parts, is_leaf=lambda x: isinstance(x, Rows))


class Seen(NamedTuple):
  """What a model gives to a target that has `hidden`.

  outputs: [B,...], of several passes [P,B,...].
  hidden:  dict name of a block -> `core.hidden.Hidden` [B,T,D], of several passes [P,B,T,D].
  """
  outputs: jax.Array
  hidden: dict


def states(name: str) -> str:
  """Returns the entry of a batch that holds the states [B,T,W] after a block of the model of another run."""
  return f'other_states/{name}'


SHOWN = 'shown'                          # among metrics: arrays that a run keeps for its figures
OUTPUTS = 'other_outputs'                # entry of a batch: what the model of another run gives for it
