"""A layer whose output is scaled by a learned vector, the same for all of its experts."""

from flax import nnx
import jax

from stmoe import axes
from stmoe import ranges
from stmoe.core import checked
from stmoe.core import contract


class Scaled(nnx.Module):
  """Returns omega * f(x), omega [D] learned and 1 at first (SparseMixer, arXiv:2310.00811).

  omega times the output matrices of all experts, and their biases, makes the same layer without it.

  Args:
    d_model: D.
    inner:   recipe of the layer f; its memory across layers passes through.
  """

  def __init__(self, d_model: int, *, inner: ranges.Named('layer'), rngs):
    self.inner = inner(d_model, rngs=rngs)
    self.omega = axes.param(nnx.initializers.ones, (d_model,), 'embed', rngs=rngs)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], aux, carry) for x [B,T,D]."""
    y, aux, carry = checked.answer(self.inner, x, ctx.fold('inner'), carry)
    return y * self.omega[...].astype(y.dtype), aux, carry
