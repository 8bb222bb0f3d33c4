"""A bank of experts that are parts of one network: an expert has the units that its mask lets through."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import contract
from stmoe.core import noise
from stmoe.core.units import activations


class ReadMe(nnx.Module):
  """(act(x Wi) * x Wg * m_e) Wo, m_e of 0 and 1, or (act(x Wi) * m_e) Wo if not gated (arXiv:2410.19123).

  All experts share the matrices, so a unit of several experts learns from the tokens of all. A row passes the
  whole network and is masked, as in the released code: this saves no product.

  Args:
    d_model, d_ff: D, and F of the network.
    activation:    name of a function, see `core/units/activations.py`.
    gated:         with Wg.
    use_bias: with biases [F] and [D] of all experts.
    share:         part of the units that an expert has at first, a run of them that begins at e F / E.
      `stmoe factorise RUN read_me` has other masks.
    dropout_rate:  on the hidden activation, per element, in training only.
    init_scale:    variance scale s of sqrt(s / fan_in).
  State: mask f32[E,F].
  """

  def __init__(self, d_model: int, *, num_experts, d_ff: ranges.Count, activation: ranges.Activation = 'silu',
               gated: ranges.Flag = True, use_bias: ranges.Flag = False, share: ranges.PartOf1 = 0.5,
               dropout_rate: ranges.Below1 = 0.0, init_scale: ranges.Positive = 1.0, rngs):
    init = nnx.initializers.variance_scaling(init_scale, 'fan_in', 'normal')
    matrix = lambda *sides: axes.param(init, [width for width, _ in sides], *[name for _, name in sides],
                                       rngs=rngs)
    narrow, wide = (d_model, 'expert_embed'), (d_ff, 'expert_mlp')
    bias = lambda side: axes.param(nnx.initializers.zeros, side[:1], side[1], rngs=rngs) if use_bias else None
    self.wi = matrix(narrow, wide)
    self.wg = matrix(narrow, wide) if gated else None
    self.wo = matrix(wide, narrow)
    self.bi, self.bo = bias(wide), bias(narrow)
    ahead = (jnp.arange(d_ff) - jnp.arange(num_experts)[:, None] * d_ff // num_experts) % d_ff     # [E, F]
    self.mask = axes.state(jnp.float32(ahead < max(round(share * d_ff), 1)), 'expert', 'expert_mlp')
    self.activation = activation
    self.dropout_rate = dropout_rate

  def hidden(self, rows: contract.Rows) -> contract.Rows:
    """Returns the activations of all units, [.,D] -> [.,F] in the same layout."""
    h = rows.linear(self.wi[...], None if self.bi is None else self.bi[...])
    h = h.map(activations.named(self.activation))                    # [., F]
    return h if self.wg is None else h.map(lambda x, g: x * g, rows.linear(self.wg[...]))

  def __call__(self, rows: contract.Rows, key: jax.Array | None = None) -> contract.Rows:
    """Returns the rows' expert outputs: [.,D] -> [.,D] in the same layout."""
    h = self.hidden(rows).scale(self.mask[...]).map(lambda x: noise.dropout(x, self.dropout_rate, key))
    return h.linear(self.wo[...], None if self.bo is None else self.bo[...])         # [., D]
