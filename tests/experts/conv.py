"""A bank that is not made of products, as somebody adds one: a file with a class that is called like it."""

from flax import nnx
import jax

from stmoe import axes


def convolved(x, w):
  """Returns rows x [R,D], each convolved along its entries with w [K]."""
  return jax.lax.conv_general_dilated(x[:, None], w[None, None], (1,), 'SAME')[:, 0]


class Conv(nnx.Module):
  """E convolutions along the entries of a row, plus a bias [D] that all experts share."""

  def __init__(self, d_model, *, num_experts, width=3, rngs):
    init = nnx.initializers.normal(1.0)
    self.w = axes.param(init, (num_experts, width), 'expert', 'unmodeled', rngs=rngs)
    self.b = axes.param(init, (d_model,), 'expert_embed', rngs=rngs)

  def __call__(self, rows, key=None):
    return rows.each(convolved, self.w[...]).shift(self.b[...]).map(jax.numpy.cos)
