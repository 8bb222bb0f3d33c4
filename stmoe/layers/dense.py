"""The dense feed-forward layer: the baseline that every sparse layer replaces."""

from flax import nnx
import jax

from stmoe import axes
from stmoe import ranges
from stmoe.core import contract
from stmoe.core import noise
from stmoe.core.units import activations
from stmoe.errors import UserError
from stmoe.parts import linear


class Dense(nnx.Module):
  """act(x wi) wo, or (act(x wi) * x wg) wo when gated (GLU variants, arXiv:2002.05202).

  The interface is that of `moe.Moe`, so a block takes either. ReLU is activation 'relu';
  GEGLU 'gelu' gated (the tanh approximation, which T5's checkpoints need); SwiGLU 'silu' gated.

  Args:
    d_model, d_ff: D and F.
    activation:    name of a function, see `core/units/activations.py`.
    dropout_rate:  on the hidden activation, one mask per sequence (T5).
    init_scale:    variance scale s of sqrt(s / fan_in).
    use_bias:      biases bi [F] (of wi), bg [F] (of wg) and bo [D], initially 0.
    limit:         L of `activations.gated` when gated (DeepSeek-V4: 10); None = without.
  """

  def __init__(self, d_model: int, *, d_ff: ranges.Count, activation: ranges.Activation = 'relu',
               gated: ranges.Flag = False, dropout_rate: ranges.Below1 = 0.0,
               init_scale: ranges.Positive = 1.0, use_bias: ranges.Flag = False,
               limit: ranges.Positive | None = None, rngs):
    if limit is not None and not gated:
      raise UserError(f'layer dense: limit={limit} is of the product of a gated network; nearest: gated=True')
    init = nnx.initializers.variance_scaling(init_scale, 'fan_in', 'truncated_normal')
    self.wi = axes.param(init, (d_model, d_ff), 'embed', 'mlp', rngs=rngs)
    self.wg = axes.param(init, (d_model, d_ff), 'embed', 'mlp', rngs=rngs) if gated else None
    self.wo = axes.param(init, (d_ff, d_model), 'mlp', 'embed', rngs=rngs)
    zeros = nnx.initializers.zeros
    self.bi = axes.param(zeros, (d_ff,), 'mlp', rngs=rngs) if use_bias else None
    self.bg = axes.param(zeros, (d_ff,), 'mlp', rngs=rngs) if use_bias and gated else None
    self.bo = axes.param(zeros, (d_model,), 'embed', rngs=rngs) if use_bias else None
    self.activation = activation
    self.dropout_rate = dropout_rate
    self.limit = limit

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], None, carry) for x [B,T,D]."""
    h = noise.dropout(self.hidden(x), self.dropout_rate, ctx.fold('hidden').key if ctx.train else None, (-2,))
    return linear.apply(h, self.wo, self.bo), None, carry            # [B, T, D]

  def hidden(self, x: jax.Array) -> jax.Array:
    """Returns what enters the last product, [B,T,F] for x [B,T,D]."""
    activation, h = activations.named(self.activation), linear.apply(x, self.wi, self.bi)    # [B, T, F]
    return activation(h) if self.wg is None else activations.gated(
        h, linear.apply(x, self.wg, self.bg), activation, self.limit)
