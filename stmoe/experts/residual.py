"""A bank of experts that are stacks of residual feed-forward sublayers, as in BASE layers."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import contract
from stmoe.core.units import activations


class Sublayer(nnx.Module):
  """E times W2 act(W1 LN(u) + b1) + b2, arrays with a leading E axis; see `Residual`."""

  def __init__(self, d_model: int, *, num_experts, d_ff, activation, epsilon, rngs):
    # The default of the reference's linear layers: uniform up to 1 / sqrt(fan in), biases as well.
    uniform = lambda fan_in: lambda key, shape, dtype: jax.random.uniform(
        key, shape, dtype, -fan_in ** -0.5, fan_in ** -0.5)
    ones, zeros = nnx.initializers.ones, nnx.initializers.zeros
    wide, narrow = (num_experts, d_ff), (num_experts, d_model)
    inward, outward = ('expert', 'expert_embed', 'expert_mlp'), ('expert', 'expert_mlp', 'expert_embed')
    self.scale = axes.param(ones, narrow, 'expert', 'expert_embed', rngs=rngs)
    self.bias = axes.param(zeros, narrow, 'expert', 'expert_embed', rngs=rngs)
    self.wi = axes.param(uniform(d_model), (num_experts, d_model, d_ff), *inward, rngs=rngs)
    self.bi = axes.param(uniform(d_model), wide, 'expert', 'expert_mlp', rngs=rngs)
    self.wo = axes.param(zeros, (num_experts, d_ff, d_model), *outward, rngs=rngs)
    self.bo = axes.param(uniform(d_ff), narrow, 'expert', 'expert_embed', rngs=rngs)
    self.activation = activation
    self.epsilon = epsilon

  def __call__(self, rows: contract.Rows) -> contract.Rows:
    """Returns what is added to the rows: [.,D] -> [.,D] in the same layout."""
    u = rows.map(self._standardize).scale(self.scale[...]).shift(self.bias[...])
    h = u.linear(self.wi[...], self.bi[...]).map(activations.named(self.activation))   # [., F]
    return h.linear(self.wo[...], self.bo[...])                      # [., D]

  def _standardize(self, x):
    """x [...,D] with zero mean and unit variance in its last axis; float32 statistics."""
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + self.epsilon)).astype(x.dtype)


class Residual(nnx.Module):
  """E experts f of `num_sublayers` blocks u <- u + W2 act(W1 LN(u) + b1) + b2 (arXiv:2103.16716, section 3).

  The output is f(u) - u: the sum of what the blocks add. A block of the model with gate a then computes
  h + a (f(h) - h) = a f(h) + (1 - a) h. Such a block has norm=False: no other norm comes between.
  W2 is zero at first, so f(h) - h begins as the sum of the biases b2.

  Args:
    d_model, d_ff: D and F.
    activation:    name of a function, see `core/units/activations.py`.
    epsilon:       of the layer norms.
  Differs: each expert draws its own initial weights; the reference gives all experts the same weights. The
    paper prints h + a f(h), which with residual blocks has a h once more; the released code is followed.
  """

  def __init__(self, d_model: int, *, num_experts, d_ff: ranges.Count, num_sublayers: ranges.Count = 1,
               activation: ranges.Activation = 'relu', epsilon: ranges.PartOf1 = 1e-5, rngs):
    make = functools.partial(Sublayer, d_model, num_experts=num_experts, d_ff=d_ff, activation=activation,
                             epsilon=epsilon)
    self.sublayers = nnx.List([make(rngs=rngs) for _ in range(num_sublayers)])

  def __call__(self, rows: contract.Rows, key: jax.Array | None = None) -> contract.Rows:
    """Returns f(u) - u of the rows: [.,D] -> [.,D] in the same layout."""
    added = self.sublayers[0](rows)
    for sublayer in self.sublayers[1:]:
      more = sublayer(rows.map(jnp.add, added))
      added = added.map(jnp.add, more)
    return added
