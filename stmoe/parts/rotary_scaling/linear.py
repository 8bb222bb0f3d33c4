"""Linear scaling: positions between those of training (Chen et al., 2023, arXiv:2306.15595)."""

import dataclasses

import jax

from stmoe import ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear:
  """All rates over `factor` (section 2.3): position m turns like position m / factor."""
  factor: ranges.Positive

  def __call__(self, rate: jax.Array, base: float, length: jax.Array) -> tuple[jax.Array, float]:
    """Returns (rates f32[P/2], 1.0) for rate f32[P/2]; lengths f32[B,1,1,1] of rows do not matter."""
    return rate / self.factor, 1.0
