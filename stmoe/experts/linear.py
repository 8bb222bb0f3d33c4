"""A bank of single linear maps: x w + b. Layers made of segments combine them."""

from flax import nnx
import jax

from stmoe import axes
from stmoe import ranges
from stmoe.core import contract


class Linear(nnx.Module):
  """E linear maps, arrays with a leading E axis; their width need not be the model's.

  Args:
    d_model, d_ff: widths of what goes in and of what comes out.
    use_bias:      with b [E,F], initially 0.
    init_scale:    variance scale s of sqrt(s / fan_in); 0 = all zeros at first.
  """

  def __init__(self, d_model: int, *, num_experts, d_ff: ranges.Count, use_bias: ranges.Flag = False,
               init_scale: ranges.NonNegative = 1.0, rngs):
    # batch_axis: otherwise E counts into the fan and weights come out sqrt(E) too small.
    init = nnx.initializers.variance_scaling(init_scale, 'fan_in', 'normal', batch_axis=(0,))
    self.w = axes.param(init, (num_experts, d_model, d_ff), 'expert', 'expert_embed', 'expert_mlp', rngs=rngs)
    zeros = nnx.initializers.zeros
    self.b = axes.param(zeros, (num_experts, d_ff), 'expert', 'expert_mlp', rngs=rngs) if use_bias else None

  def __call__(self, rows: contract.Rows, key: jax.Array | None = None) -> contract.Rows:
    """Returns the rows of the experts: [.,D] -> [.,F] in the same layout."""
    return rows.linear(self.w[...], None if self.b is None else self.b[...])
