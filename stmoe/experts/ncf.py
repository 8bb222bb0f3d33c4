"""A bank of neural context flows: networks that read a state and its context side by side."""

import math
import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core.units import conditions
from stmoe.experts.bases import conditioned


def between(inward: int, outward: int, depth: int) -> list[int]:
  """Returns the depth + 1 widths of a network, in geometric steps, those inside rounded up to even numbers.

  >>> between(2, 6, 2), between(2, 32, 3)
  ([2, 4, 6], [2, 6, 14, 32])
  """
  inside = [inward * (outward / inward) ** (i / depth) for i in range(1, depth)]
  return [inward, *(2 * math.ceil(width / 2) for width in inside), outward]


class Ncf(conditioned.Bank):
  """E networks main([data(state), context(context)]) of states [n] and contexts [c].

  NCF as experts of MixER (arXiv:2502.05335). Three networks of linear maps with Swish between them; each
  Swish has a beta of its own. Rows [.,n+C] hold a state and its context (`core/units/conditions.py`).

  Args:
    d_model: n + C.
    d_ff:    F, width of the hidden layers of the main network.
    depth: their number.
    hidden:  h, width of what the data network and the context network give.
    depth_before: linear maps of these two, whose widths grow in geometric steps (`between`).
    context, split, shift, identical: see `geps.Geps`.
  Differs: the note names no first values; they are U(-1/sqrt(in), 1/sqrt(in)).
  """

  def __init__(self, d_model: int, *, num_experts, d_ff: ranges.Count, hidden: ranges.Count = 32,
               depth: ranges.Count = 3, depth_before: ranges.Count = 2, context: ranges.Natural = 0,
               split: ranges.Flag = False, shift: ranges.Flag = True, identical: ranges.Flag = True, rngs):
    part, out = conditions.width('ncf', context, split, num_experts), d_model - context

    made = conditioned.maker(num_experts, identical, rngs)
    self.of_context = Net(made, between(part, hidden, depth_before)) if part else None
    self.of_data = Net(made, between(out, hidden, depth_before))
    self.main = Net(made, [hidden * (1 + bool(part)), *[d_ff] * depth, out])
    self.condition(made, num_experts, context, part, split, shift)

  def one(self, rows: jax.Array) -> jax.Array:
    """Returns [R,n] for rows [R,n+C] of the only expert that is left in the arrays, which have no axis E."""
    x, context = self.parted(rows)
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
