"""Pruning of whole rows in training, by the moving average of how much they matter to the loss.

The sparse part of MC-SMoE (arXiv:2310.01334), after LoSparse and PLATON. The importance of an entry is
|w dL/dw|. A row, what one output of a matrix is made of, has the mean over its entries. After every step of
the optimizer the least important rows of all matrices together are set to 0, fewer and fewer being kept. The
optimizer moves zeros, too: a row may come back.
"""

import math
import typing

import jax
import jax.numpy as jnp
import numpy as np

from stmoe import errors
from stmoe.train import optimizers


def share(step: typing.Any, total: int, final: float, before: int, after: int,
          initial: float = 1.0) -> typing.Any:
  """Returns the share of entries that step number `step` (of numpy, any shape) keeps.

  v_f + (v_i - v_f) (1 - (t - t_i) / (T - t_i - t_f))^3 between the first t_i and the last t_f steps.

  Args:
    total:   T; final: v_f; initial: v_i.
    before:  t_i, steps that keep `initial`; after: t_f, steps that keep `final`.

  >>> share(np.array([0, 10, 20, 30]), 40, 0.2, 10, 10).tolist()
  [1.0, 1.0, 0.30000000000000004, 0.2]
  """
  through = np.clip((step - before) / (total - before - after), 0, 1)
  return final + (initial - final) * (1 - through) ** 3


def due(step: typing.Any, total: int, before: int, after: int, every: int) -> typing.Any:
  """Returns whether step number `step` (of numpy, any shape) prunes: none of the first `before` steps.

  Later every step does whose number is divisible by `every`, and each of the last `after` steps.
  """
  return (step > before) & ((step > total - after) | (step % every == 0))


def threshold(means: list[jax.Array], widths: list[int], number: jax.Array) -> jax.Array:
  """Returns f32[]: the smallest mean but `number` - 1 of all matrices, every row counted once per entry.

  Args:
    means:  arrays [.,out] of the rows' means; widths: entries of a row of each array.
    number: i32[] in units of the widths' greatest common divisor, rounded up; 0 gives minus infinity.

  >>> float(threshold([jnp.array([3.0, 1.0]), jnp.array([2.0])], [2, 4], jnp.int32(2)))    # 1 1 2 2 2 2 3 3
  2.0
  """
  unit = math.gcd(*widths)
  joined = jnp.concatenate([mean.ravel() for mean in means])
  counts = jnp.concatenate([jnp.full(mean.size, width // unit, jnp.int32)
                            for mean, width in zip(means, widths)])
  order = jnp.argsort(joined)
  place = jnp.searchsorted(jnp.cumsum(counts[order]), number)
  return jnp.where(number > 0, joined[order][jnp.minimum(place, joined.size - 1)], -jnp.inf)


def smallest(sizes: list[int], widths: list[int], shares: np.ndarray) -> np.ndarray:
  """Returns i32[...], the `number` of `threshold` that leaves `shares` f64[...] of matrices."""
  entries = np.trunc(sum(sizes) * (1 - shares))
  return np.ceil(entries / math.gcd(*widths)).astype(np.int32)


def around(optimizer: optimizers.Optimizer, names: dict, field: str, total: int, *, kept: float,
           before: int, after: int, every: int = 1, memory: float = 0.85,
           initial: float = 1.0) -> optimizers.Optimizer:
  """Returns the Optimizer that prunes after every update of `optimizer`; `update` takes the step i32[], too,
  before `moves`.

  The state has `importance` besides, f32[...] of every entry. A step's own importance is in that average from
  the next step on.

  Args:
    names: tree of the parameters' logical axes; field: of the configuration, for messages.
    total: steps of the training.
    kept:  share of the entries that the last steps keep; initial, before, after, every: see `share`, `due`.
    memory: share of the average that stays in a step.
  """
  if total <= before + after:
    raise errors.UserError(f'{field}: {before} steps before and {after} steps after pruning do not fit into '
                           f'train.steps={total}; nearest: --config.train.steps={before + after + 1}')
  steps = np.arange(total + 1)
  shares, prunes = share(steps, total, kept, before, after, initial), due(steps, total, before, after, every)

  def init(params):
    return optimizer.init(params) | dict(importance=jax.tree.map(jnp.zeros_like, params))

  def update(grads, state, params, rate, step, moves=True):
    average = state['importance']
    slots = {name: value for name, value in state.items() if name != 'importance'}
    old, (params, slots) = params, optimizer.update(grads, slots, params, rate, moves)
    matrices = jax.tree.leaves(params)
    sizes, widths = [w.size for w in matrices], [w.shape[-2] for w in matrices]
    number = jnp.where(prunes, smallest(sizes, widths, shares), 0)[step + 1]       # steps count from 1 here
    means = jax.tree.map(lambda a: a.mean(-2), average)              # [..., out]
    limit = threshold(jax.tree.leaves(means), widths, number)
    pruned = jax.tree.map(lambda w, mean: jnp.where((mean < limit)[..., None, :], 0, w), params, means)
    moved = jax.tree.map(lambda a, w, g: memory * a + (1 - memory) * jnp.abs(w * g), average, params, grads)
    params, average = optimizers.held(moves, (pruned, moved), (old, average))
    return params, slots | dict(importance=average)

  return optimizers.Optimizer(init, update, optimizer.names | dict(importance=names))
