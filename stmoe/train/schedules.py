"""Learning-rate schedules as functions of the optimizer step; a configuration names the function."""

import sys
import typing

import jax
import jax.numpy as jnp
import ml_collections

from stmoe import errors
from stmoe import lookup
from stmoe import ranges
from stmoe.core import checked


def of(section: ml_collections.ConfigDict, total_steps: int) -> typing.Callable[[jax.Array], jax.Array]:
  """Returns the function step i32[] -> rate f32[] of section `schedule`.

  Raises UserError, with the function's file, if the function returns something else.
  """
  schedule = lookup.bind(sys.modules[__name__], 'schedule', section, total_steps=total_steps)
  rate = jax.eval_shape(schedule, jax.ShapeDtypeStruct((), jnp.int32))
  if getattr(rate, 'shape', None) != ():
    raise errors.UserError(f'{checked.file(schedule.func)}: schedule {section.name} returned '
                           f'{checked.told(rate)}; wanted: float32[], the rate of step i32[]')
  return schedule


def constant(step, *, value: ranges.NonNegative):
  """Returns f32[] `value` at every step (T5 fine-tuning: 1e-3)."""
  return jnp.full_like(step, value, jnp.float32)


def rsqrt(step, *, base: ranges.NonNegative = 1.0, hold_steps: ranges.Count = 10000,
          warmup_steps: ranges.Natural = 0):
  """Returns f32[] base / sqrt(max(step, hold_steps)) (T5, arXiv:1910.10683, section 3.1.2).

  0.01 for the first 10,000 steps with the defaults; there is no linear warm-up. With warmup_steps =
  hold_steps this is the inverse square root of the Transformer (arXiv:1706.03762, eq. 3).
  """
  return _warm(step, base, warmup_steps) / jnp.sqrt(jnp.maximum(step, hold_steps).astype(jnp.float32))


def inverse_sqrt(step, *, peak: ranges.NonNegative, warmup_steps: ranges.Count):
  """Returns f32[]: 0 to `peak` in `warmup_steps`, then peak * sqrt(warmup_steps / step).

  This is the Transformer's schedule (arXiv:1706.03762, eq. 3) with the peak given, as in fairseq.
  """
  steps_done = step.astype(jnp.float32) + 1.0
  return _warm(step, peak, warmup_steps) * jnp.sqrt(warmup_steps / jnp.maximum(steps_done, warmup_steps))


def linear(step, *, peak: ranges.NonNegative, total_steps, warmup_steps: ranges.Natural = 0,
           end_fraction: ranges.Share = 0.0):
  """Returns f32[]: 0 to `peak` in `warmup_steps`, then straight down to end_fraction * peak at total_steps.

  Steps count from 0 and the first step already moves: its rate is peak / warmup_steps.
  """
  fraction = 1.0 - _done(step, total_steps, warmup_steps)
  return _warm(step, peak, warmup_steps) * _between(fraction, end_fraction)


def cosine(step, *, peak: ranges.NonNegative, total_steps, warmup_steps: ranges.Natural = 0,
           end_fraction: ranges.Share = 0.0):
  """Returns f32[]: as `linear`, but down along half a period of the cosine (arXiv:1608.03983, eq. 5)."""
  fraction = 0.5 * (1.0 + jnp.cos(jnp.pi * _done(step, total_steps, warmup_steps)))
  return _warm(step, peak, warmup_steps) * _between(fraction, end_fraction)


def staircase(step, *, peak: ranges.NonNegative, total_steps, warmup_steps: ranges.Natural = 0,
              factor: ranges.NonNegative = 0.316, at: ranges.Many(ranges.Share) = (0.8, 0.9)):
  """Returns f32[]: 0 to `peak` in `warmup_steps`, then constant, times `factor` at each share of total_steps.

  The defaults are those of DeepSeekMoE (arXiv:2401.06066, section 4.1.3): 0.316 at 80 % and again at 90 %.
  """
  passed = sum((step >= round(share * total_steps)).astype(jnp.float32) for share in at)
  return _warm(step, peak, warmup_steps) * factor ** passed


def _warm(step, peak, warmup_steps):
  return peak * jnp.minimum(1.0, (step.astype(jnp.float32) + 1.0) / max(warmup_steps, 1))


def _done(step, total_steps, warmup_steps):
  """Returns the share in [0, 1] of the decay that lies behind `step`."""
  share = (step.astype(jnp.float32) - warmup_steps) / max(total_steps - warmup_steps, 1)
  return jnp.clip(share, 0.0, 1.0)


def _between(fraction, end_fraction):
  return end_fraction + (1.0 - end_fraction) * fraction
