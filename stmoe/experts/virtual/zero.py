"""The zero expert: a token's choice that computes nothing."""

from flax import nnx
import jax


class Zero(nnx.Module):
  """Returns 0: the zero expert of MoE++ (arXiv:2410.07348), the null expert of AdaMoE (arXiv:2406.13233).

  A layer in a residual block is skipped by a token that chooses only such experts.
  """

  def __init__(self, d_model: int, *, rngs):
    pass

  def __call__(self, x: jax.Array) -> None:
    """Returns None, that is nothing to add, for x [G,S,D]."""
    return None
