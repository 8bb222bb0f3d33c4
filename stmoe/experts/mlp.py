"""A bank of two-matrix feed-forward experts: act(x wi + bi) wo + bo."""

import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import contract
from stmoe.core import noise
from stmoe.core.units import activations


class Mlp(nnx.Module):
  """E feed-forward networks, arrays with a leading E axis (Switch, arXiv:2101.03961).

  Args:
    d_model, d_ff: D and F.
    activation:    name of a function, see `core/units/activations.py`.
    dropout_rate:  expert dropout: on the hidden activation, per element, in training only.
    init_scale:    variance scale s of sqrt(s / fan_in) (0.1 in Switch, section 2.4).
    out_scale:     s of wo, where not that of wi (sigma-MoE, arXiv:2310.10837, divides it by E).
    use_bias:      with bi [E,F] and bo [E,D], initially 0.
    identical:     all experts start as the same (V-MoE, arXiv:2106.05974); the router must tell them apart.
  """

  def __init__(self, d_model: int, *, num_experts, d_ff: ranges.Count, activation: ranges.Activation = 'relu',
               dropout_rate: ranges.Below1 = 0.0, init_scale: ranges.Positive = 0.1,
               out_scale: ranges.Positive | None = None, use_bias: ranges.Flag = False,
               identical: ranges.Flag = False, rngs):
    # batch_axis: otherwise E counts into the fan and weights come out sqrt(E) too small.
    def init(scale):
      one = nnx.initializers.variance_scaling(scale, 'fan_in', 'normal', batch_axis=(0,))
      return repeated(one) if identical else one
    inward, outward = ('expert', 'expert_embed', 'expert_mlp'), ('expert', 'expert_mlp', 'expert_embed')
    self.wi = axes.param(init(init_scale), (num_experts, d_model, d_ff), *inward, rngs=rngs)
    self.wo = axes.param(init(out_scale or init_scale), (num_experts, d_ff, d_model), *outward, rngs=rngs)
    zeros = nnx.initializers.zeros
    self.bi = axes.param(zeros, (num_experts, d_ff), 'expert', 'expert_mlp', rngs=rngs) if use_bias else None
    self.bo = (axes.param(zeros, (num_experts, d_model), 'expert', 'expert_embed', rngs=rngs)
               if use_bias else None)
    self.activation = activation
    self.dropout_rate = dropout_rate

  def __call__(self, rows: contract.Rows, key: jax.Array | None = None) -> contract.Rows:
    """Returns the rows' expert outputs: [.,D] -> [.,D] in the same layout."""
    activation = activations.named(self.activation)
    bi, bo = (b if b is None else b[...] for b in (self.bi, self.bo))
    h = rows.linear(self.wi[...], bi).map(activation)                # [., F]
    h = h.map(lambda x: noise.dropout(x, self.dropout_rate, key))
    return h.linear(self.wo[...], bo)                                # [., D]


def repeated(init: typing.Callable[..., jax.Array]) -> typing.Callable[..., jax.Array]:
  """Returns an initialiser of arrays [E,...] that draws one expert with `init` and repeats it."""
  def draw(key, shape, dtype):
    return jnp.broadcast_to(init(key, (1, *shape[1:]), dtype), shape)
  return draw
