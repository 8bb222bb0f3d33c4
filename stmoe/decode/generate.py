"""Generation of text: one compiled program from prompts to ids."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from stmoe import errors
from stmoe import lookup
from stmoe.core import checked
from stmoe.decode import ahead


def make(plan, decode, length, tell=None):
  """Returns the jitted `(params, router_state, batch, key) -> i32[B,length]` ids, up to and with EOS, then 0.

  Every token is routed as if it were alone (`layers.moe.grouping`). So what a row gets does not depend on the
  rows beside it, and no expert is ever full. Routers that draw in evaluation draw by the key, and may draw by
  the place of a row in the batch. Rows must divide over the devices of the mesh.
  Raises UserError for a model or strategy that is not decoded token by token.

  Args:
    plan:   the Blueprint of a model (`stmoe.train.state`).
    decode: mapping with the `name` of a strategy (a file of `decode/strategies`) and its fields.
    length: most tokens to generate for a row.
    tell:   see `loop.run`; the strategy must be one that chooses token by token.
  The program's batch has the encoder_ arrays of an encoder-decoder, or prompts: decoder_ input_tokens,
  segment_ids and positions, padded on the right, each starting with the model's start_id as in training.
  """
  if length < 1:
    raise errors.UserError(f'a generated text has at least 1 token, not {length}')
  strategy = lookup.recipe('strategy', decode)()
  if tell is not None:
    if not tells(decode):
      raise errors.UserError(f'decode.name={decode["name"]} knows a text only at its end and cannot give it '
                             'token by token; nearest: greedy')
    strategy.tell = tell
  check(plan.model(plan.shapes['params'], plan.shapes['router_state']), strategy)

  def run(params, routers, batch, key):
    model = plan.model(params, routers)
    model.stacks()[-1].unroll()
    ids = ahead.run(strategy, model, batch, length, key)
    rows = len(next(iter(batch.values())))
    fits = getattr(ids, 'shape', None) == (rows, length) and jnp.issubdtype(ids.dtype, jnp.integer)
    return checked.returned(strategy, ids, fits, f'int32[{rows},{length}], the ids of a text a row')
  return jax.jit(run, out_shardings=NamedSharding(plan.mesh, PartitionSpec()))


def tells(decode):
  """Returns whether the strategy of section `decode` chooses token by token, so that texts may be told."""
  return hasattr(lookup.constructor('strategy', decode['name']), 'tell')


def ends(cfg, vocabulary):
  """Returns the tuple of ids that end a text of the model of `cfg`: the model's, or the vocabulary's EOS."""
  return tuple(cfg.model.get('end_ids') or (vocabulary.eos_id,))


def ending(decode, cfg, vocabulary):
  """Returns section `decode` with `ends` as its `eos_id`, where the strategy has one and none is given."""
  known = 'eos_id' in lookup.fields('strategy', decode['name'])
  return (dict(eos_id=ends(cfg, vocabulary)) if known else {}) | dict(decode)


def text(cfg, vocabulary, ids):
  """Returns the text of ids i32[T], down to the first id that ends it."""
  last = np.flatnonzero(np.isin(ids, ends(cfg, vocabulary)))
  return vocabulary.decode(ids[:last[0]] if len(last) else ids)


def check(model, strategy):
  """Raises UserError if `model` cannot be decoded token by token, or not by `strategy`."""
  stacks = model.stacks()
  reason = stacks[-1].undecodable()
  if reason is not None:
    raise errors.UserError(reason)
  if not hasattr(model, 'begin'):
    name = type(model).__module__.rpartition('.')[2]
    raise errors.UserError(f'model {name} generates no text token by token; nearest: model.name=lm or t5')
  strategy.check(model)
