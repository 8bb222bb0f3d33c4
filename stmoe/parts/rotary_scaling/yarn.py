"""YaRN (arXiv:2309.00071): fast pairs keep their rate, slow pairs are slowed by the factor."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from stmoe import ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class Yarn:
  """Rates for a context `factor` times the `length` of training.

  factor, length: of the context, and positions of training.
  fast, slow: turns in `length` positions. Pairs that turn more than `fast` times keep their rate. Pairs that
    turn less than `slow` times get their rate divided by `factor`. Pairs between get a mixture, linear in
    their number (section 3.2).
  size:     factor of cos and sin (section 3.4).
  truncate: whether the borders between the three kinds are whole numbers, which widens the mixture
    (gpt-oss: not).
  """
  factor: ranges.Positive
  length: ranges.Count
  fast: ranges.Positive = 32.0
  slow: ranges.Positive = 1.0
  size: ranges.Positive = 1.0
  truncate: ranges.Flag = True

  def __call__(self, rate: jax.Array, base: float, length: jax.Array) -> tuple[jax.Array, float]:
    """Returns (rates f32[P/2], size) for rate f32[P/2]; lengths f32[B,1,1,1] of rows do not matter."""
    pairs = rate.shape[0]
    border = lambda turns: pairs * math.log(self.length / (turns * 2 * math.pi)) / math.log(base)
    low, high = border(self.fast), border(self.slow)
    if self.truncate:
      low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    slower = jnp.clip((jnp.arange(pairs) - low) / (high - low or 1e-3), 0, 1)
    return rate * (1 - slower) + rate / self.factor * slower, self.size
