"""A bank whose activation has a slope that all experts share, as somebody adds one."""

from flax import nnx
import jax.numpy as jnp

from stmoe import axes


class Sloped(nnx.Module):
  """Two products, between them x above 0 and s x below, with s [F] of all experts."""

  def __init__(self, d_model, *, num_experts, d_ff=12, rngs):
    init = nnx.initializers.normal(0.3)
    inward, outward = ('expert', 'expert_embed', 'expert_mlp'), ('expert', 'expert_mlp', 'expert_embed')
    self.wi = axes.param(init, (num_experts, d_model, d_ff), *inward, rngs=rngs)
    self.wo = axes.param(init, (num_experts, d_ff, d_model), *outward, rngs=rngs)
    self.slope = axes.param(init, (d_ff,), 'expert_mlp', rngs=rngs)

  def __call__(self, rows, key=None):
    slope = self.slope[...]
    return rows.linear(self.wi[...]).map(lambda x: jnp.where(x > 0, x, slope * x)).linear(self.wo[...])
