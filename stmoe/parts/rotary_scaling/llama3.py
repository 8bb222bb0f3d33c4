"""The scaling of Llama 3.1: by wavelength, so that short waves keep their rate (arXiv:2407.21783)."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from stmoe import errors
from stmoe import ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3:
  """Rates for a context `factor` times as long as the `length` of training.

  factor, length: of the context, and positions of training.
  low, high: waves in `length` positions. Pairs with more than `high` waves keep their rate. Pairs with fewer
    than `low` waves get their rate divided by `factor`. Pairs between get a mixture, linear in their waves.
  """
  factor: ranges.Positive
  length: ranges.Count
  low: ranges.Positive = 1.0
  high: ranges.Positive = 4.0

  def __post_init__(self):
    if self.high <= self.low:
      raise errors.UserError(f'rotary_scaling llama3: high={self.high} waves are not more than '
                             f'low={self.low}; nearest: {4 * self.low}')

  def __call__(self, rate: jax.Array, base: float, length: jax.Array) -> tuple[jax.Array, float]:
    """Returns (rates f32[P/2], 1.0) for rate f32[P/2]; lengths f32[B,1,1,1] of rows do not matter."""
    waves = self.length * rate / (2 * math.pi)                       # [P/2], 1 at a wavelength of `length`
    kept = jnp.clip((waves - self.low) / (self.high - self.low), 0, 1)
    return rate * kept + rate / self.factor * (1 - kept), 1.0
