"""A bank of hierarchical shallow piecewise-linear networks: recurrent networks that a context makes."""

import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core.units import conditions
from stmoe.experts.bases import conditioned
from stmoe.errors import UserError


class Shplrnn(conditioned.Bank):
  """E recurrent networks whose parameters are H context: the next value after every value of a sequence.

  hier-shPLRNN as experts of MixER (arXiv:2502.05335). With z_0 = 0, for every observed value x of [M]:

    z' = alpha z + (1 - alpha) x,    z <- A z' + W1 relu(W2 z' + h2) + h1.

  The outputs are the z. Rows [.,T M + C] hold a sequence and its context (`core/units/conditions.py`). H
  context is A [M,M], W1 [M,L], W2 [L,M], h1 [M], h2 [L] and alpha [1], in this order.

  Args:
    d_model:    T M + C.
    d_ff:       L.
    num_values: M, numbers of a value; the latent state is as wide.
    least:      alpha is no smaller; None = it may be anything. There is no limit from above.
    context, split, shift, identical: see `geps.Geps`. With context=0, H is the vector of parameters itself.
  Differs: the note names no first values; H is U(-1/sqrt(c), 1/sqrt(c)).
  """

  def __init__(self, d_model: int, *, num_experts, d_ff: ranges.Count, num_values: ranges.Count = 1,
               least: ranges.Share | None = None, context: ranges.Natural = 0, split: ranges.Flag = False,
               shift: ranges.Flag = True, identical: ranges.Flag = True, rngs):
    part, m = conditions.width('shplrnn', context, split, num_experts), num_values
    if (d_model - context) % m:
      raise UserError(f'experts shplrnn: num_values={m} numbers of a value do not divide sequences of '
                      f'{d_model - context}')

    made = conditioned.maker(num_experts, identical, rngs)
    self.shapes = ((m, m), (m, d_ff), (d_ff, m), (m,), (d_ff,), (1,))
    size = m * m + 2 * m * d_ff + m + d_ff + 1
    self.h = made(conditions.within(part), max(part, 1), size)
    self.condition(made, num_experts, context, part, split, shift)
    self.num_values, self.least = m, least
    # A row passes the made matrices once for each of its values.
    self.products_per_row = max(part, 1) * size + (d_model - context) // m * (m * m + 2 * m * d_ff)

  def one(self, rows: jax.Array) -> jax.Array:
    """Returns [R,T M] for rows [R,T M+C] of the only expert that is left in the arrays, without axis E."""
    x, context = self.parted(rows)
    context = context if self.part else jnp.ones((len(x), 1), x.dtype)
    a, w1, w2, h1, h2, alpha = conditions.cut(context @ self.h[...], self.shapes)    # [R, ...]
    alpha = alpha if self.least is None else jnp.maximum(alpha, self.least)
    times = lambda matrix, vector: jnp.einsum('roi,ri->ro', matrix, vector)

    def step(z, value):
      z = alpha * z + (1 - alpha) * value
      z = times(a, z) + times(w1, jax.nn.relu(times(w2, z) + h2)) + h1
      return z, z
    values = x.reshape(len(x), -1, self.num_values)                  # [R, T, M]
    _, z = jax.lax.scan(step, jnp.zeros_like(values[:, 0]), values.swapaxes(0, 1))
    return z.swapaxes(0, 1).reshape(x.shape)
