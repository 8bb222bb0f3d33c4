"""The activated expert: its output is a function of its input, elementwise."""

from flax import nnx
import jax

from stmoe import ranges
from stmoe.core.units import activations


class Activated(nnx.Module):
  """Returns act(x): what expert 0 of MoFME's released code is by mistake (arXiv:2312.16610).

  Args:
    activation: name of a function, see `core/units/activations.py`.
  """

  def __init__(self, d_model: int, *, activation: ranges.Activation = 'gelu_exact', rngs):
    self.activation = activation

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [G,S,D] for x [G,S,D]."""
    return activations.named(self.activation)(x)
