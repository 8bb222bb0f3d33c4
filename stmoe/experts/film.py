"""A bank of feature modulations: an expert scales and shifts features by what it reads in them (MoFME)."""

from flax import nnx
import jax

from stmoe import axes
from stmoe import ranges
from stmoe.core import contract


class Film(nnx.Module):
  """E experts (u G + g) * u + (u B + b), elementwise products (arXiv:2312.16610).

  An expert has 2 D^2 numbers in its matrices, however wide the layer that shares its features is.

  Args:
    d_model:    D.
    init_scale: variance scale s of sqrt(s / fan_in) of G and B [E,D,D]; g and b [E,D] are initially 0.
  """

  def __init__(self, d_model: int, *, num_experts, init_scale: ranges.Positive = 1.0, rngs):
    init = nnx.initializers.variance_scaling(init_scale, 'fan_in', 'normal', batch_axis=(0,))
    matrix = lambda: axes.param(init, (num_experts, d_model, d_model), 'expert', 'expert_embed', 'expert_mlp',
                                rngs=rngs)
    vector = lambda: axes.param(nnx.initializers.zeros, (num_experts, d_model), 'expert', 'expert_mlp',
                                rngs=rngs)
    self.scale, self.shift = matrix(), matrix()
    self.scale_bias, self.shift_bias = vector(), vector()

  def __call__(self, rows: contract.Rows, key: jax.Array | None = None) -> contract.Rows:
    """Returns the rows' expert outputs: [.,D] -> [.,D] in the same layout."""
    scale = rows.linear(self.scale[...], self.scale_bias[...])       # [., D]
    shift = rows.linear(self.shift[...], self.shift_bias[...])
    return rows.map(lambda u, by, add: by * u + add, scale, shift)
