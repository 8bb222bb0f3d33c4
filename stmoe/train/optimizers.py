"""Optimizers: a configuration names an optimizer by its function and gives the function's fields.

Each returns an Optimizer for parameters of given logical axes and shapes. Learning rate
and global-norm clipping come from outside: from the schedule and `clip`. So the state is
a plain nested dict of statistics and nothing else.
"""

import inspect
import sys
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import optax

from stmoe import axes
from stmoe import errors
from stmoe import lookup
from stmoe import ranges
from stmoe.core import checked
from stmoe.train import adafactor as factored


class Optimizer(NamedTuple):
  """Pure functions on nested dicts.

  init:   params -> state.
  update: (grads, state, params, rate f32[], moves bool[] = True) -> (params, state); where `moves` is False
    they stay as they were.
  names:  tree of logical axis names, like the state.
  """
  init: Callable
  update: Callable
  names: dict


def of(section: dict, names: dict, shapes: dict) -> Optimizer:
  """Returns the Optimizer of section `optimizer` for parameters of these logical axes and shapes.

  Raises UserError, with the function's file, for another answer than `Optimizer` says; computes no array.
  """
  make = lookup.bind(sys.modules[__name__], 'optimizer', section)
  made = make(names, shapes)
  wrong = _wrong(made, shapes)
  if wrong:
    raise errors.UserError(f'{checked.file(make.func)}: optimizer {section["name"]} {wrong}')
  return made


def _wrong(made, shapes):
  """What is wrong with what an optimizer's function returned, or None."""
  if not isinstance(made, Optimizer):
    return f'returned {checked.told(made)}; wanted: optimizers.Optimizer(init, update, names)'
  state = jax.eval_shape(made.init, shapes)
  of = lambda tree, leaf=None: jax.tree.structure(tree, is_leaf=leaf)
  entries = lambda tree: ', '.join(sorted(tree)) if isinstance(tree, dict) else checked.told(tree)
  if of(state) != of(made.names, axes.is_names):
    return (f'has names of {entries(made.names)}; wanted: logical axes of its state, a tree like it: '
            f'{entries(state)}')
  scalars = [jax.ShapeDtypeStruct((), dtype) for dtype in (jnp.float32, bool)]
  try:
    inspect.signature(made.update).bind(shapes, state, shapes, *scalars)
  except TypeError as error:
    return f'has an update with {error}; wanted: (grads, state, params, rate, moves) -> (params, state)'
  after = jax.eval_shape(made.update, shapes, state, shapes, *scalars)
  if of(after) != of((shapes, state)):
    said = f'({"; ".join(map(entries, after))})' if isinstance(after, tuple) else checked.told(after)
    return f'has an update that returns {said}; wanted: (params, state), as they were given'
  return None


def adamw(names, shapes, *, b1: ranges.Below1 = 0.9, b2: ranges.Below1 = 0.999, eps: ranges.PartOf1 = 1e-8,
          weight_decay: ranges.NonNegative = 0.0, average: ranges.Below1 = 0.0):
  """Returns AdamW (arXiv:1711.05101): decay lr * weight_decay * param, of matrices only (see `decayed`).

  average: share of the old average that a step keeps of the parameters, see `averaged`; 0 = no averages.
  """
  adam = optax.scale_by_adam(b1, b2, eps)
  own = _decoupled(adam, optax.ScaleByAdamState, _by_moments(b1, b2, eps), decayed(names), weight_decay,
                   dict(count=(), mu=names, nu=names))
  return averaged(own, names, average) if average else own


def adabelief(names, shapes, *, b1: ranges.Below1 = 0.9, b2: ranges.Below1 = 0.999,
              eps: ranges.PartOf1 = 1e-16, weight_decay: ranges.NonNegative = 0.0):
  """Returns AdaBelief (arXiv:2010.07468); `weight_decay` is decoupled, of matrices only (see `decayed`)."""
  belief = optax.scale_by_belief(b1, b2, eps, eps)
  return _decoupled(belief, optax.ScaleByBeliefState, _by_moments(b1, b2, eps), decayed(names), weight_decay,
                    dict(count=(), mu=names, nu=names))


def sgd(names, shapes, *, momentum: ranges.Below1 = 0.0, nesterov: ranges.Flag = False,
        weight_decay: ranges.NonNegative = 0.0):
  """Returns SGD with momentum; `weight_decay` is decoupled, of matrices only (see `decayed`)."""
  def direction(grads, state):
    ahead = lambda g, trace: g + momentum * trace
    return jax.tree.map(ahead, grads, state['trace']) if nesterov else state['trace']
  trace = optax.trace(momentum, nesterov)
  return _decoupled(trace, optax.TraceState, direction, decayed(names), weight_decay, dict(trace=names))


def _by_moments(b1, b2, eps):
  """The direction of Adam and of AdaBelief, from their moments."""
  def direction(grads, state):
    mean = optax.tree.bias_correction(state['mu'], b1, state['count'])
    square = optax.tree.bias_correction(state['nu'], b2, state['count'])
    return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mean, square)
  return direction


def _decoupled(transform, state_type, direction, masks, weight_decay, names):
  """An Optimizer of an optax transform with decoupled weight decay; its state is a plain dict.

  `direction(grads, state)` is the step of the transform, computed from the state that is kept. So nothing
  but the new state reads the old one, and can be written over it. With the transform's own step XLA:CPU
  computes the state twice, and copies the old one before.
  """
  def init(params):
    return dict(transform.init(params)._asdict())

  def update(grads, state, params, rate, moves=True):
    _, new = transform.update(grads, state_type(**state))
    state = held(moves, dict(new._asdict()), state)
    decay = lambda p, u, masked: p - rate * (u + weight_decay * p if masked else u)
    return held(moves, jax.tree.map(decay, params, direction(grads, state), masks), params), state

  return Optimizer(init, update, names)


def held(moves, new, old):
  """Returns `new` where `moves` bool[], else `old`: trees of the same arrays."""
  return jax.tree.map(lambda a, b: jnp.where(moves, a, b), new, old)


# Of the state of an optimizer: the parameters that evaluation reads, and those at which a group is held.
AVERAGES, ANCHOR = 'averages', 'anchor'
COPIES = AVERAGES, ANCHOR                # begin as the parameters


def averaged(own, names, share):
  """Returns Optimizer `own`, which also keeps averages over steps: share * average + (1 - share) * params.

  The averages start as the parameters. All that reads a trained model reads them (`Blueprint.evaluated`).
  """
  def init(params):
    return own.init(params) | {AVERAGES: jax.tree.map(jnp.copy, params)}

  def update(grads, state, params, rate, moves=True):
    slots = {name: slot for name, slot in state.items() if name != AVERAGES}
    params, slots = own.update(grads, slots, params, rate, moves)
    means = jax.tree.map(lambda mean, p: share * mean + (1 - share) * p, state[AVERAGES], params)
    return params, slots | {AVERAGES: held(moves, means, state[AVERAGES])}

  return Optimizer(init, update, own.names | {AVERAGES: names})


def adafactor(names, shapes, *, decay_rate: ranges.Share = 0.8, step_offset: ranges.Natural = 0,
              momentum: ranges.Below1 | None = None, weight_decay: ranges.Share = 0.0,
              clipping_threshold: ranges.Positive | None = 1.0, min_dim_size_to_factor: ranges.Count = 128,
              epsilon1: ranges.PartOf1 = 1e-30, epsilon2: ranges.NonNegative = 1e-3,
              multiply_by_parameter_scale: ranges.Flag = True):
  """Returns Adafactor with T5X's semantics (see `stmoe.train.adafactor`); the rate is relative."""
  plans = jax.tree.map(lambda n, s: factored.plan(n, s.shape, min_dim_size_to_factor), names, shapes,
                       is_leaf=axes.is_names)

  def init(params):
    return factored.init(params, plans, momentum)

  def update(grads, state, params, rate, moves=True):
    new = factored.update(grads, state, params, plans, rate, decay_rate=decay_rate, step_offset=step_offset,
                          momentum=momentum, weight_decay=weight_decay, epsilon1=epsilon1, epsilon2=epsilon2,
                          clipping_threshold=clipping_threshold,
                          multiply_by_parameter_scale=multiply_by_parameter_scale)
    return held(moves, new, (params, state))

  return Optimizer(init, update, factored.names_of(names, plans, momentum))


def decayed(names):
  """Returns a tree of bools: which parameters weight decay shrinks.

  Weight decay shrinks what is a matrix apart from stacked layers and experts. It does not shrink gains,
  biases and spatial matrices of gMLP, which begin near zero.
  """
  matrix = lambda n: sum(name not in ('layers', 'expert', 'length') for name in n) >= 2
  return jax.tree.map(matrix, names, is_leaf=axes.is_names)


def norm(grads):
  """Returns f32[]: the global norm of a tree of gradients [...]."""
  return jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))


def clip(grads, norm, limit):
  """Returns `grads` scaled so that their global norm is at most `limit`; `norm` f32[] is their norm now."""
  scale = jnp.minimum(1.0, limit / norm)
  return jax.tree.map(lambda g: g * scale, grads)


def proximal(own, names, coefficient, begins):
  """Returns the Optimizer of the loss plus coefficient / 2 * mean((p - anchor)^2) over all entries p.

  The gradient alone has the term, which is in no loss that is reported. The state has `anchor` besides: the
  parameters as they were when `begins` was last true (MixER, arXiv:2502.05335).

  Args:
    own:    an Optimizer whose `update` takes the step i32[], too, before `moves`.
    names:  tree of the parameters' logical axes.
    begins: step i32[] -> bool[].
  """
  def init(params):
    return own.init(params) | {ANCHOR: jax.tree.map(jnp.copy, params)}

  def update(grads, state, params, rate, step, moves=True):
    anchor = held(begins(step) & moves, params, state[ANCHOR])
    factor = coefficient / sum(p.size for p in jax.tree.leaves(params))
    grads = jax.tree.map(lambda g, p, a: g + factor * (p - a), grads, params, anchor)
    slots = {name: value for name, value in state.items() if name != ANCHOR}
    params, slots = own.update(grads, slots, params, rate, step, moves)
    return params, slots | {ANCHOR: anchor}

  return Optimizer(init, update, own.names | {ANCHOR: names})
