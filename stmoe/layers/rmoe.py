"""Options of RMoE's released sparse layer: a weighted shared expert, an output bias (arXiv:2408.06793)."""

from flax import nnx
import jax

from stmoe import axes
from stmoe import ranges
from stmoe.core import checked
from stmoe.core import contract
from stmoe.layers import dense


class RMoE(nnx.Module):
  """moe_weight inner(x) + share_weight shared(x) + b; without a shared expert inner(x) + b.

  Args:
    d_model:      D.
    inner:        recipe of the routed layer; its memory across layers passes through.
    d_ff:         width of the shared SwiGLU expert, which every token passes; None = there is none.
    moe_weight, share_weight: of the two parts.
    use_bias:     a bias b [D] of the output, initially 0.
  """

  def __init__(self, d_model: int, *, inner: ranges.Named('layer'), d_ff: ranges.Count | None = None,
               moe_weight: ranges.Any = 0.5, share_weight: ranges.Any = 0.5, use_bias: ranges.Flag = False,
               rngs):
    self.inner = inner(d_model, rngs=rngs)
    self.shared = None if d_ff is None else dense.Dense(d_model, d_ff=d_ff, activation='silu', gated=True,
                                                        rngs=rngs)
    zeros = nnx.initializers.zeros
    self.b = axes.param(zeros, (d_model,), 'embed', rngs=rngs) if use_bias else None
    self.moe_weight = moe_weight
    self.share_weight = share_weight

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], aux, carry) for x [B,T,D]."""
    y, aux, carry = checked.answer(self.inner, x, ctx.fold('inner'), carry)
    if self.shared is not None:
      shared, _, _ = self.shared(x, ctx.fold('shared'), {})
      y = self.moe_weight * y + self.share_weight * shared
    return y if self.b is None else y + self.b[...].astype(y.dtype), aux, carry
