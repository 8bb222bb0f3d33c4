"""A bank of gated feed-forward experts: (act(x wi + bi) * (x wg + bg)) wo + bo."""

import functools

from flax import nnx
import jax

from stmoe import axes
from stmoe import ranges
from stmoe.core import contract
from stmoe.core import noise
from stmoe.core.units import activations


class Glu(nnx.Module):
  """E gated feed-forward networks (GLU variants, arXiv:2002.05202), arrays with a leading E axis.

  Args:
    d_model, d_ff: D and F.
    activation:    name of a function, see `core/units/activations.py`: 'gelu' for GEGLU, 'silu' for SwiGLU.
    multiplicative_bias: scales the gated product by a learned b [E,F], initially 1:
      ((act(x wi) * x wg) * b) wo (ST-MoE, arXiv:2202.08906, appendix C).
    dropout_rate:  expert dropout: on the hidden activation, per element, in training only.
    init_scale:    variance scale s of sqrt(s / fan_in) (0.1 in Switch, section 2.4).
    limit:         L of `activations.gated` (DeepSeek-V4: 10); None = without.
    slope, offset: s and o of `activations.gated` (gpt-oss: 1.702 and 1).
    use_bias:      with bi, bg [E,F] and bo [E,D], initially 0.
  """

  def __init__(self, d_model: int, *, num_experts, d_ff: ranges.Count, activation: ranges.Activation = 'gelu',
               multiplicative_bias: ranges.Flag = False, dropout_rate: ranges.Below1 = 0.0,
               init_scale: ranges.Positive = 0.1, limit: ranges.Positive | None = None,
               slope: ranges.Positive = 1.0, offset: ranges.Any = 0.0, use_bias: ranges.Flag = False, rngs):
    # batch_axis: otherwise E counts into the fan and weights come out sqrt(E) too small.
    init = nnx.initializers.variance_scaling(init_scale, 'fan_in', 'normal', batch_axis=(0,))
    inward, outward = ('expert', 'expert_embed', 'expert_mlp'), ('expert', 'expert_mlp', 'expert_embed')
    self.wi = axes.param(init, (num_experts, d_model, d_ff), *inward, rngs=rngs)
    self.wg = axes.param(init, (num_experts, d_model, d_ff), *inward, rngs=rngs)
    self.wo = axes.param(init, (num_experts, d_ff, d_model), *outward, rngs=rngs)
    ones_init = nnx.initializers.ones
    self.b = (axes.param(ones_init, (num_experts, d_ff), 'expert', 'expert_mlp', rngs=rngs)
              if multiplicative_bias else None)
    bias = lambda width, name: axes.param(
        nnx.initializers.zeros, (num_experts, width), 'expert', name, rngs=rngs) if use_bias else None
    self.bi, self.bg = bias(d_ff, 'expert_mlp'), bias(d_ff, 'expert_mlp')
    self.bo = bias(d_model, 'expert_embed')
    self.activation = activation
    self.dropout_rate = dropout_rate
    self.limit, self.slope, self.offset = limit, slope, offset

  def __call__(self, rows: contract.Rows, key: jax.Array | None = None) -> contract.Rows:
    """Returns the rows' expert outputs: [.,D] -> [.,D] in the same layout."""
    gated = functools.partial(activations.gated, activation=activations.named(self.activation),
                              limit=self.limit, slope=self.slope, offset=self.offset)
    bi, bg, bo = (b if b is None else b[...] for b in (self.bi, self.bg, self.bo))
    gate = rows.linear(self.wg[...], bg)                             # [., F]
    h = rows.linear(self.wi[...], bi).map(gated, gate)
    if self.b is not None:
      h = h.scale(self.b[...])
    h = h.map(lambda x: noise.dropout(x, self.dropout_rate, key))
    return h.linear(self.wo[...], bo)                                    # [., D]
