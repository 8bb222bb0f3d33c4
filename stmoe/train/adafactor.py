"""Adafactor (arXiv:1804.04235) with the semantics of T5X: factored by the logical names of the axes.

Why: optax factors the two largest dimensions and clips and scales once per array. Stacked layers
and stacked experts would then share one clipping and one scale, and a bank with many small
experts would be factored across experts. Here `layers` and `expert` are batch axes: each
slice has its own statistics, its own clipping and its own scale.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from stmoe import axes

# Logical axis -> part in the factored second moment. Batch axes are never averaged over.
FACTOR = {
    'embed': 'row', 'expert_embed': 'row',
    'vocab': 'column', 'mlp': 'column', 'heads': 'column', 'kv': 'column', 'joined_kv': 'column',
    'expert_mlp': 'column',
    'layers': 'batch', 'expert': 'batch',
    'relpos_buckets': None, 'unmodeled': None, 'length': None, None: None,
}


class Plan(NamedTuple):
  """How one parameter is treated; tuples of dimensions.

  mean:   all but the batch dimensions: clipping and scale are averages over them.
  row, column: dimensions of the factored second moment; both () = not factored.
  """
  mean: tuple
  row: tuple
  column: tuple


def plan(names, shape, min_dim_size_to_factor=128):
  """Returns the Plan of a parameter with logical axes `names`.

  A matrix (or vector) that is no batch of anything is factored over its dimensions when
  both have `min_dim_size_to_factor`. Any other array is factored as its names say, and not at all when
  rows or columns are missing.

  Differs: T5X takes scanned layers [L, D, F] for a batch, so factors them whatever their size.
    To the same layers unscanned T5X applies the size rule. Here the rule sees one layer in both
    cases. The two agree when D and F reach min_dim_size_to_factor.
  """
  parts = [FACTOR[name] for name in names]
  mean = tuple(i for i, part in enumerate(parts) if part != 'batch')
  row, column = (tuple(i for i, part in enumerate(parts) if part == want) for want in ('row', 'column'))
  layer = [i for i, name in enumerate(names) if name != 'layers']
  if len(layer) <= 2 and len(layer) == len(mean):
    large = len(layer) == 2 and min(shape[i] for i in layer) >= min_dim_size_to_factor
    small, big = sorted(layer, key=lambda i: shape[i]) if large else ((), ())
    return Plan(mean, (small,), (big,)) if large else Plan(mean, (), ())
  if not row or not column:
    return Plan(mean, (), ())
  if len(row) + len(column) < len(mean):
    raise ValueError(f'logical axes {names} have rows, columns and axes that are neither')
  return Plan(mean, row, column)


def init(params, plans, momentum):
  """Returns the state: count i32[] and, per parameter, dict of v_row, v_col (or v) and m, f32."""
  def slots(p, how):
    v = {'v': jnp.zeros(p.shape)}
    if how.row:
      v = {'v_row': jnp.zeros(_without(p.shape, how.column)), 'v_col': jnp.zeros(_without(p.shape, how.row))}
    return v | ({'m': jnp.zeros(p.shape)} if momentum is not None else {})
  return dict(count=jnp.zeros((), jnp.int32), slots=jax.tree.map(slots, params, plans))


def names_of(names, plans, momentum):
  """Returns the logical axes of the state of `init` for parameters with logical axes `names`."""
  def slots(n, how):
    v = {'v': n}
    if how.row:
      v = {'v_row': _without(n, how.column), 'v_col': _without(n, how.row)}
    return v | ({'m': n} if momentum is not None else {})
  return dict(count=(), slots=jax.tree.map(slots, names, plans, is_leaf=axes.is_names))


def update(grads, state, params, plans, rate, *, decay_rate=0.8, step_offset=0, momentum=None,
           weight_decay=0.0, clipping_threshold=1.0, epsilon1=1e-30, epsilon2=1e-3,
           multiply_by_parameter_scale=True):
  """Returns (params, state) after one step of Adafactor at learning rate `rate` f32[].

  The second moment decays with 1 - (t+1)^-decay_rate, so the first step forgets its start and
  no bias correction is needed. Weight decay is (1 - weight_decay) * param, not times the rate.
  """
  # Steps before the offset count as the step at it: a negative number has no such power.
  t = jnp.maximum(state['count'] - step_offset, 0).astype(jnp.float32) + 1.0
  beta2 = 1.0 - t ** -decay_rate

  def of_parameter(p, g, how, slots):
    squared = jnp.square(g) + epsilon1
    scaled, new_slots = _precondition(g, squared, how, slots, beta2)
    if clipping_threshold is not None:
      scaled = scaled / jnp.maximum(1.0, _rms(scaled, how.mean) / clipping_threshold)
    scale = jnp.maximum(_rms(p, how.mean), epsilon2) if multiply_by_parameter_scale else 1.0
    step = rate * scale * scaled
    if momentum is not None:
      step = new_slots['m'] = momentum * slots['m'] + (1.0 - momentum) * step
    return (1.0 - weight_decay) * p - step, new_slots

  leaves, tree = jax.tree.flatten(params)
  parts = (tree.flatten_up_to(part) for part in (grads, plans, state['slots']))
  params, slots = zip(*map(of_parameter, leaves, *parts))
  return tree.unflatten(params), dict(count=state['count'] + 1, slots=tree.unflatten(slots))


def _precondition(g, squared, how, slots, beta2):
  """Returns (g / sqrt(second moment), new statistics)."""
  mix = lambda old, new: beta2 * old + (1.0 - beta2) * new
  if not how.row:
    v = mix(slots['v'], squared)
    return g * jax.lax.rsqrt(v), {'v': v}
  v_row = mix(slots['v_row'], jnp.mean(squared, how.column))         # g without its columns
  v_col = mix(slots['v_col'], jnp.mean(squared, how.row))            # g without its rows
  r, c = jnp.expand_dims(v_row, how.column), jnp.expand_dims(v_col, how.row)
  r = r / jnp.mean(r, how.row, keepdims=True)
  return g * jax.lax.rsqrt(r) * jax.lax.rsqrt(c), {'v_row': v_row, 'v_col': v_col}


def _rms(x, dims):
  return jnp.sqrt(jnp.sum(jnp.square(x), dims, keepdims=True) / math.prod(x.shape[d] for d in dims))


def _without(entries, dims):
  return tuple(e for i, e in enumerate(entries) if i not in dims)
