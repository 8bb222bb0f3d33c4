"""LongRoPE: a factor for every pair, others for short texts than for long ones (arXiv:2402.13753)."""

import dataclasses

import jax
import jax.numpy as jnp

from stmoe import errors
from stmoe import ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class Longrope:
  """Rates over `short` for texts of up to `length` positions, over `long` for longer ones.

  short, long: a factor for every pair, P/2 in all, found by search (section 3.2).
  length:      positions of training.
  short_size, long_size: factors of cos and sin.

  The longest text of a row decides for the row; in decoding, the room of the cache does. So all keys of a
  text have the factors of one length, and short texts in a large cache have those of long ones.
  Differs: transformers 4.57.3 decides by the longest row of a batch with its padding, in decoding by the
    length so far; it computes the cache anew where that passes `length`. For Phi-3.5-MoE transformers 5.24.0
    takes the `short` factors at any length, which is long=short here.
  """
  short: ranges.Many(ranges.Positive, least=1)
  long: ranges.Many(ranges.Positive, least=1)
  length: ranges.Count
  short_size: ranges.Positive = 1.0
  long_size: ranges.Positive = 1.0

  def __post_init__(self):
    if len(self.short) != len(self.long):
      raise errors.UserError(f'rotary_scaling longrope: {len(self.short)} factors short and {len(self.long)} '
                             'long; nearest: as many, one for every pair')

  def __call__(self, rate: jax.Array, base: float, length: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (rates f32[B,1,1,P/2], size f32[B,1,1,1]) for rate f32[P/2], lengths f32[B,1,1,1] of rows."""
    if len(self.short) != len(rate):
      raise errors.UserError(f'rotary_scaling longrope: {len(self.short)} factors for {len(rate)} pairs; '
                             f'nearest: {len(rate)} of each, or head_dim={2 * len(self.short)}')
    is_long = length > self.length
    factors = jnp.where(is_long, jnp.asarray(self.long), jnp.asarray(self.short))     # [B, 1, 1, P/2]
    return rate / factors, jnp.where(is_long, self.long_size, self.short_size)
