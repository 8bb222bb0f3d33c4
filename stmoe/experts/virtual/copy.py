"""The copy expert: its output is its input."""

from flax import nnx
import jax


class Copy(nnx.Module):
  """Returns x: the copy expert of MoE++ (arXiv:2410.07348)."""

  def __init__(self, d_model: int, *, rngs):
    pass

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns x [G,S,D]."""
    return x
