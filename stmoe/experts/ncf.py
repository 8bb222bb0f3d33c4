"""A bank of neural context flows: networks that read a state and its context side by side."""

import math
import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core.units import conditions
from stmoe.core import contract


def between(inward: int, outward: int, depth: int) -> list[int]:
  """Returns the depth + 1 widths of a network, in geometric steps, those inside rounded up to even numbers.

  >>> between(2, 6, 2), between(2, 32, 3)
  ([2, 4, 6], [2, 6, 14, 32])
  """
  inside = [inward * (outward / inward) ** (i / depth) for i in range(1, depth)]
  return [inward, *(2 * math.ceil(width / 2) for width in inside), outward]


class Ncf(nnx.Module):
  """E networks main([data(state), context(context)]) of states [n] and contexts [c].

  NCF as experts of MixER (arXiv:2502.05335). Three networks of linear maps with Swish between them; each
  Swish has a beta of its own. Rows [.,n+C] hold a state and its context (`core/units/conditions.py`).

  Args:
    d_model: n + C.
    d_ff:    F, width of the hidden layers of the main network; depth: their number.
    hidden:  h, width of what the data network and the context network give.
    depth_before: linear maps of these two, whose widths grow in geometric steps (`between`).
    context, split, shift, identical: see `geps.Geps`.
  Differs: the note names no first values; they are U(-1/sqrt(in), 1/sqrt(in)).
  """

  def __init__(self, d_model: int, *, num_experts, d_ff: ranges.Count, hidden: ranges.Count = 32,
               depth: ranges.Count = 3, depth_before: ranges.Count = 2, context: ranges.Natural = 0,
               split: ranges.Flag = False, shift: ranges.Flag = True, identical: ranges.Flag = True, rngs):
    part, out = conditions.width('ncf', context, split, num_experts), d_model - context

    def made(init, *shape):
      names = ('expert', *['unmodeled'] * len(shape))
      return axes.param(conditions.alike(init, identical), (num_experts, *shape), *names, rngs=rngs)
    self.of_context = Net(made, between(part, hidden, depth_before)) if part else None
    self.of_data = Net(made, between(out, hidden, depth_before))
    self.main = Net(made, [hidden * (1 + bool(part)), *[d_ff] * depth, out])
    self.shift = made(nnx.initializers.zeros, 1) if shift and context else None
    self.number = axes.state(conditions.numbers(num_experts), 'expert', 'unmodeled') if split else None
    self.context, self.part = context, part

  def __call__(self, rows: contract.Rows, key: jax.Array | None = None) -> contract.Rows:
    """Returns the rows' expert outputs: [.,n+C] -> [.,n] in the same layout."""
    leaves, tree = jax.tree.flatten(self)
    return rows.each(lambda x, *arrays: jax.tree.unflatten(tree, arrays).one(x), *leaves)

  def one(self, rows: jax.Array) -> jax.Array:
    """Returns [R,n] for rows [R,n+C] of the only expert that is left in the arrays, which have no axis E."""
    read = lambda array: None if array is None else array[...]
    x, context = conditions.parted(rows, self.context, self.part, read(self.number), read(self.shift))
    parts = [self.of_data(x)] + ([] if self.of_context is None else [self.of_context(context)])
    return self.main(jnp.concatenate(parts, axis=-1))                # [R, n]


class Net(nnx.Module):
  """Linear maps of `widths` with a Swish between them: w [E,I,O], b [E,O], beta [E,1]."""

  def __init__(self, made: typing.Callable, widths: list[int]):
    pairs = list(zip(widths, widths[1:]))
    self.w = nnx.List([made(conditions.within(inward), inward, outward) for inward, outward in pairs])
    self.b = nnx.List([made(conditions.within(inward), outward) for inward, outward in pairs])
    self.beta = nnx.List([made(conditions.beta, 1) for _ in pairs[1:]])

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [R,O] for x [R,I], of one expert."""
    for number, (w, b) in enumerate(zip(self.w, self.b)):
      x = conditions.swish(x, self.beta[number - 1][...]) if number else x
      x = x @ w[...] + b[...]
    return x
