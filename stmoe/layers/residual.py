"""A layer with its own residual and norm inside the residual and norm of a post-norm block."""

from flax import nnx
import jax

from stmoe import ranges
from stmoe.core import checked
from stmoe.core import contract
from stmoe.layers import momentum
from stmoe.parts import norm


class Residual(nnx.Module):
  """Returns LN(x + f(x)), to which a post-norm block adds x and normalises again.

  This is the sparse baseline (SMoE) of MomentumSMoE (arXiv:2410.14574), a habit of Transformer-XL's
  feed-forward layers. `momentum.Momentum` with mu = 0 and gamma = -1 gives the same numbers.

  Args:
    d_model: D.
    inner:   recipe of the layer f; its memory across layers passes through.
    dropout_rate: dropout of f(x), per element, in training only.
  """

  def __init__(self, d_model: int, *, inner: ranges.Named('layer'), dropout_rate: ranges.Below1 = 0.0, rngs):
    self.inner = inner(d_model, rngs=rngs)
    self.norm = norm.LayerNorm(d_model, rngs=rngs)
    self.dropout_rate = dropout_rate

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], aux, carry) for x [B,T,D]."""
    c, aux, carry = checked.answer(self.inner, x, ctx.fold('inner'), carry)
    c = momentum.drop(c, self.dropout_rate, ctx)
    return self.norm(x + c).astype(x.dtype), aux, carry
