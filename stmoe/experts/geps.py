"""A bank of GEPS: networks whose every array is moved by a low-rank part that a context scales."""

import typing

from flax import nnx
import jax

from stmoe import ranges
from stmoe.core.units import conditions
from stmoe.experts.bases import conditioned


class Geps(conditioned.Bank):
  """E networks of states [n] and contexts [c]: W + A diag(context) B for matrices, v + A context for vectors.

  GEPS as experts of MixER (arXiv:2502.05335). Linear(n, F), Swish, [Linear(F, F), Swish] ..., Linear(F, n);
  vectors are biases and the beta of every Swish. Rows [.,n+C] hold a state and its context (`conditions`).

  Args:
    d_model:  n + C.
    d_ff:     F.
    depth: number of linear maps.
    context:  C; 0 = there is none.
    split:    each expert reads its own of E equal parts of the context.
    shift:    an expert adds a number of its own, at first 0, to every number of the context.
    identical: all experts start as the same.
  Differs: the note names no first values of W and v; they are U(-1/sqrt(in), 1/sqrt(in)).
  """

  def __init__(self, d_model: int, *, num_experts, d_ff: ranges.Count, depth: ranges.Count = 3,
               context: ranges.Natural = 0, split: ranges.Flag = False, shift: ranges.Flag = True,
               identical: ranges.Flag = True, rngs):
    part = conditions.width('geps', context, split, num_experts)
    widths = [d_model - context, *[d_ff] * (depth - 1), d_model - context]

    made = conditioned.maker(num_experts, identical, rngs)
    self.layers = nnx.List([
        Moved(made, conditions.within(inward), inward, outward, part)
        for inward, outward in zip(widths, widths[1:])])
    self.betas = nnx.List([Vector(made, conditions.beta, 1, part) for _ in widths[2:]])
    self.condition(made, num_experts, context, part, split, shift)

  def one(self, rows: jax.Array) -> jax.Array:
    """Returns [R,n] for rows [R,n+C] of the only expert that is left in the arrays, which have no axis E."""
    x, context = self.parted(rows)
    x = self.layers[0](x, context)
    for layer, beta in zip(self.layers[1:], self.betas):
      x = layer(conditions.swish(x, beta(context)), context)
    return x


class Vector(nnx.Module):
  """v + A context: v [E,F] and a [E,c,F], the transpose of A."""

  def __init__(self, made: typing.Callable, init: typing.Callable, width: int, part: int):
    self.v = made(init, width)
    self.a = made(conditions.within(width), part, width) if part else None

  def __call__(self, context: jax.Array) -> jax.Array:
    """Returns [R,F] for contexts [R,c], of one expert."""
    return self.v[...] if self.a is None else self.v[...] + context @ self.a[...]


class Moved(nnx.Module):
  """x (W + A diag(context) B)^T plus a `Vector`: w [E,I,O], a [E,c,O] and b [E,I,c], all transposed."""

  def __init__(self, made: typing.Callable, init: typing.Callable, inward: int, outward: int, part: int):
    self.w = made(init, inward, outward)
    self.bias = Vector(made, init, outward, part)
    self.a = made(conditions.within(outward), part, outward) if part else None
    self.b = made(conditions.within(part), inward, part) if part else None

  def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
    """Returns [R,O] for x [R,I] and contexts [R,c], of one expert."""
    y = x @ self.w[...] + self.bias(context)
    if self.a is None or self.b is None:
      return y
    return y + ((x @ self.b[...]) * context) @ self.a[...]
