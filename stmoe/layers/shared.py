"""Shared experts: a dense layer that every token passes, beside a routed layer."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import checked
from stmoe.core import contract
from stmoe.layers import dense


class Shared(nnx.Module):
  """shared(x) + inner(x) (DeepSeekMoE, arXiv:2401.06066, section 3.2).

  The shared experts are always active and not routed. `num_shared` gated networks of width d_ff are
  one network of width num_shared * d_ff.

  Args:
    d_model:      D.
    inner:        recipe of the routed layer.
    d_ff:         width of one shared expert.
    num_shared: how many there are.
    activation, gated, dropout_rate, init_scale, use_bias, limit: see `dense.Dense`; SwiGLU is 'silu' gated.
    sigmoid_gate: multiplies the shared output by sigmoid(x w), w [D,1] (Qwen2-MoE, arXiv:2407.10671).
  """

  def __init__(self, d_model: int, *, inner: ranges.Named('layer'), d_ff: ranges.Count,
               num_shared: ranges.Count = 1, activation: ranges.Activation = 'silu',
               gated: ranges.Flag = True, dropout_rate: ranges.Below1 = 0.0,
               init_scale: ranges.Positive = 1.0, use_bias: ranges.Flag = False,
               limit: ranges.Positive | None = None, sigmoid_gate: ranges.Flag = False, rngs):
    self.inner = inner(d_model, rngs=rngs)
    self.shared = dense.Dense(d_model, d_ff=num_shared * d_ff, activation=activation, gated=gated,
                              dropout_rate=dropout_rate, init_scale=init_scale, use_bias=use_bias,
                              limit=limit, rngs=rngs)
    init = nnx.initializers.normal(0.02)
    self.gate = axes.param(init, (d_model, 1), 'embed', 'unmodeled', rngs=rngs) if sigmoid_gate else None

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], aux, carry) for x [B,T,D]."""
    with jax.named_scope('shared'):
      shared, _, _ = self.shared(x, ctx.fold('shared'), {})
      if self.gate is not None:
        weight = jax.nn.sigmoid(x.astype(jnp.float32) @ self.gate[...])            # [B, T, 1]
        shared = shared * weight.astype(x.dtype)
    y, aux, carry = checked.answer(self.inner, x, ctx.fold('inner'), carry)
    return shared + y, aux, carry
