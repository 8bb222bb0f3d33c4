"""A bank of CoDA: networks whose flat vector of parameters is moved along a few directions by a context."""

import math

import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core.units import conditions
from stmoe.experts.bases import conditioned


def shapes(widths: list[int]) -> list[tuple[int, ...]]:
  """Returns the shapes of the arrays of a network [O,I], [O], beta [1], [O,I] ... in their flat order.

  >>> shapes([2, 6, 2])
  [(6, 2), (6,), (1,), (2, 6), (2,)]
  """
  arrays: list[tuple[int, ...]] = []
  for inward, outward in zip(widths, widths[1:]):
    arrays += [(outward, inward), (outward,), (1,)]
  return arrays[:-1]                                                 # no Swish after the last map


class Coda(conditioned.Bank):
  """E networks of states [n] and contexts [c] with the parameters theta + H context, all of them, beta too.

  CoDA as experts of MixER (arXiv:2502.05335). Linear(n, F), Swish, [Linear(F, F), Swish] ..., Linear(F, n).
  Rows [.,n+C] hold a state and its context (`core/units/conditions.py`); every row has parameters of its own.

  Args:
    d_model:  n + C.
    d_ff:     F.
    depth: number of linear maps.
    context, split, shift, identical: see `geps.Geps`.
  Differs: the note names no first values; matrices, biases and H are U(-1/sqrt(in), 1/sqrt(in)).
  """

  def __init__(self, d_model: int, *, num_experts, d_ff: ranges.Count, depth: ranges.Count = 3,
               context: ranges.Natural = 0, split: ranges.Flag = False, shift: ranges.Flag = True,
               identical: ranges.Flag = True, rngs):
    part = conditions.width('coda', context, split, num_experts)
    widths = [d_model - context, *[d_ff] * (depth - 1), d_model - context]
    self.shapes = tuple(shapes(widths))

    def theta(key, shape, dtype):
      keys, arrays = jax.random.split(key, len(self.shapes)), []
      fans = [width for width in widths[:-1] for _ in range(3)]
      for number, (one, fan) in enumerate(zip(self.shapes, fans)):
        init = conditions.beta if number % 3 == 2 else conditions.within(fan)
        arrays.append(init(keys[number], (shape[0], *one), dtype).reshape(shape[0], -1))
      return jnp.concatenate(arrays, axis=-1)

    made = conditioned.maker(num_experts, identical, rngs)
    size = sum(math.prod(shape) for shape in self.shapes)
    self.theta = made(theta, size)
    self.h = made(conditions.within(part), part, size) if part else None
    self.condition(made, num_experts, context, part, split, shift)
    self.products_per_row = part * size + sum(math.prod(shape) for shape in self.shapes if len(shape) == 2)

  def one(self, rows: jax.Array) -> jax.Array:
    """Returns [R,n] for rows [R,n+C] of the only expert that is left in the arrays, which have no axis E."""
    x, context = self.parted(rows)
    flat = self.theta[...] if self.h is None else self.theta[...] + context @ self.h[...]
    arrays = conditions.cut(jnp.broadcast_to(flat, (len(x), flat.shape[-1])), self.shapes)
    for at in range(0, len(arrays), 3):
      w, b = arrays[at:at + 2]                                       # [R, O, I], [R, O]
      x = jnp.einsum('ri,roi->ro', x, w) + b
      if at + 2 < len(arrays):
        x = conditions.swish(x, arrays[at + 2])
    return x
