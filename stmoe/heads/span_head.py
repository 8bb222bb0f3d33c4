"""The head of extractive question answering: where an answer starts and where it ends."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe.core import contract
from stmoe.parts import linear


class SpanHead(nnx.Module):
  """x w + b in float32, w [D,2], b [2] initially 0: a start and an end logit of every position.

  Args:
    length: T, positions of a row.
  """

  def __init__(self, d_model: int, *, length, rngs):
    self.w = axes.param(nnx.initializers.normal(0.02), (d_model, 2), 'embed', 'unmodeled', rngs=rngs)
    self.b = axes.param(nnx.initializers.zeros, (2,), 'unmodeled', rngs=rngs)
    self.rows_per_sequence = length

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (logits f32[B,T,2], None, carry) for x [B,T,D]."""
    del ctx
    return linear.apply(x.astype(jnp.float32), self.w, self.b), None, carry          # [B, T, 2]
