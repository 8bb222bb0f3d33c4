"""A bank of causal spatial experts: matrices over positions, whose rows are channels."""

import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe.core import contract


def near_zero(length: int) -> typing.Callable[..., jax.Array]:
  """Returns the initialiser U(-1e-3/N, 1e-3/N) of spatial matrices over N positions (arXiv:2105.08050)."""
  return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -1e-3 / length, 1e-3 / length)


def causal(w: jax.Array) -> jax.Array:
  """Returns w [...,in,out] with zeros where a position would receive from a later position.

  Zeros, not -inf: there is no softmax over positions.
  """
  return jnp.triu(w)


class Feature(nnx.Module):
  """E causal maps over positions, o = S v + beta, of the sparse all-MLP (arXiv:2203.06850).

  A row is a channel, and its entries are the positions 0, 1, ... of a sequence (`layers/gmlp.py` swaps
  the axes). At the start S is nearly 0 and beta is 1, so every output is nearly 1.

  Args:
    d_model: N, the longest row; shorter rows of width n take S[:n,:n] and beta[:n].
  """

  def __init__(self, d_model: int, *, num_experts, rngs):
    names = 'expert', 'length', 'length'
    self.w = axes.param(near_zero(d_model), (num_experts, d_model, d_model), *names, rngs=rngs)
    self.b = axes.param(nnx.initializers.ones, (num_experts, d_model), 'expert', 'length', rngs=rngs)

  def __call__(self, rows: contract.Rows, key: jax.Array | None = None) -> contract.Rows:
    """Returns the rows' mixtures of earlier positions: [.,n] -> [.,n] in the same layout."""
    n = rows.x.shape[-1]
    return rows.linear(causal(self.w[:, :n, :n])).shift(self.b[:, :n])
