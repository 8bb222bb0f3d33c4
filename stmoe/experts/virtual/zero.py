"""The zero expert: a token's choice that computes nothing."""

from flax import nnx
import jax


class Zero(nnx.Module):
  """Returns 0: the zero expert of MoE++ (arXiv:2410.07348), the null expert of AdaMoE (arXiv:2406.13233).

  A token that chooses only zero experts skips a layer in a residual block.
  """

  def __init__(self, d_model: int, *, rngs):
    pass

  def __call__(self, x: jax.Array) -> None:
    """Returns None for x [G,S,D], because nothing is to be added."""
    return None
