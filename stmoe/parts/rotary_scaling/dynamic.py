"""Dynamic scaling: a larger base for texts longer than those of training (dynamic NTK, arXiv:2309.00071)."""

import dataclasses

import jax
import jax.numpy as jnp

from stmoe import ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dynamic:
  """Rates of the base b (s n / L - s + 1)^(P / (P - 2)) for texts of n > L positions, of b for others.

  factor, length: s and L. With n = L both bases are equal; the base grows with every position after it.

  The longest text of a row decides for the row; in decoding, the room of the cache does. So all keys of a
  text have the rates of one length.
  Differs: transformers decides by the longest row of a batch, and in decoding by the newest position. Keys in
    its cache keep the rates that they were turned with.
  """
  factor: ranges.AtLeast1
  length: ranges.Count

  def __call__(self, rate: jax.Array, base: float, length: jax.Array) -> tuple[jax.Array, float]:
    """Returns (rates f32[B,1,1,P/2], 1.0) for rate f32[P/2] and the lengths f32[B,1,1,1] of the rows."""
    pairs = rate.shape[0]
    grown = self.factor * jnp.maximum(length, self.length) / self.length - (self.factor - 1)
    # base^(-i / (P/2)) becomes (base * grown^(P / (P - 2)))^(-i / (P/2)), pair i of P/2.
    return rate * grown ** (-jnp.arange(pairs) / max(pairs - 1, 1)), 1.0
