"""The copy expert: its output is its input."""

from flax import nnx


class Copy(nnx.Module):
  """Returns x: the copy expert of MoE++ (arXiv:2410.07348)."""

  def __init__(self, d_model, *, rngs):
    pass

  def __call__(self, x):
    """Returns x [G,S,D]."""
    return x
