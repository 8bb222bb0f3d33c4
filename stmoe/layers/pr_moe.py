"""The residual layer of PR-MoE: a dense network beside one routed expert (arXiv:2201.05596)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import checked
from stmoe.core import contract
from stmoe.layers import dense


class PRMoE(nnx.Module):
  """c_1 inner(x) + c_2 mlp(x), with (c_1, c_2) = softmax(x W + b) of every token (arXiv:2201.05596).

  A token that `inner` drops still has c_2 mlp(x): the coefficients do not know of the drop.

  Args:
    d_model:      D.
    inner:        recipe of the routed layer.
    d_ff:         width of the dense network, in the paper that of one expert.
    mix:          'learned' (released code), or 'sum': c_1 = c_2 = 1, as the paper is mostly described.
    activation, gated, dropout_rate, init_scale, use_bias: see `dense.Dense`.
  Differs: the released code starts the dense network and all experts of a layer as copies of one; here each
    is drawn by itself. W starts at N(0, 0.02), there uniform.
  """

  def __init__(self, d_model: int, *, inner: ranges.Named('layer'), d_ff: ranges.Count,
               mix: ranges.Choice('learned', 'sum') = 'learned', activation: ranges.Activation = 'gelu',
               gated: ranges.Flag = False, dropout_rate: ranges.Below1 = 0.0,
               init_scale: ranges.Positive = 1.0, use_bias: ranges.Flag = False, rngs):
    self.inner = inner(d_model, rngs=rngs)
    self.mlp = dense.Dense(d_model, d_ff=d_ff, activation=activation, gated=gated, dropout_rate=dropout_rate,
                           init_scale=init_scale, use_bias=use_bias, rngs=rngs)
    learned = mix == 'learned'
    self.w = axes.param(nnx.initializers.normal(0.02), (d_model, 2), 'embed', 'unmodeled',
                        rngs=rngs) if learned else None
    self.b = axes.param(nnx.initializers.zeros, (2,), 'unmodeled', rngs=rngs) if learned else None

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], aux, carry) for x [B,T,D]."""
    with jax.named_scope('residual'):
      residual, _, _ = self.mlp(x, ctx.fold('residual'), {})
    routed, aux, carry = checked.answer(self.inner, x, ctx.fold('inner'), carry)
    if self.w is None or self.b is None:
      return routed + residual, aux, carry
    mix = jax.nn.softmax(x.astype(jnp.float32) @ self.w[...] + self.b[...])        # [B, T, 2]
    return (mix[..., :1] * routed + mix[..., 1:] * residual).astype(x.dtype), aux, carry
