"""Schedules at the steps where their value is known by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe.train import schedules


def rates(section, steps, total=100):
  schedule = lookup.bind(schedules, 'schedule', section, total_steps=total)
  return [float(schedule(jnp.int32(step))) for step in steps]


@pytest.mark.parametrize('section, steps, expected', [
    (dict(name='constant', value=1e-3), [0, 7, 1000], [1e-3] * 3),
    (dict(name='rsqrt'), [0, 9999, 10000, 40000], [0.01, 0.01, 0.01, 0.005]),
    (dict(name='rsqrt', base=2.0, hold_steps=100), [0, 400], [0.2, 0.1]),
    # Warm-up of 100 as well: a hundredth at step 0; then as without.
    (dict(name='rsqrt', base=2.0, hold_steps=100, warmup_steps=100), [0, 99, 400], [0.002, 0.2, 0.1]),
    # Warm-up of 10: a tenth of the peak at step 0, the peak at step 9; then 90 steps down.
    (dict(name='linear', peak=1.0, warmup_steps=10), [0, 4, 9, 10, 55, 100], [0.1, 0.5, 1, 1, 0.5, 0]),
    (dict(name='linear', peak=1.0, end_fraction=0.2), [0, 50, 100], [1.0, 0.6, 0.2]),
    (dict(name='cosine', peak=2.0, warmup_steps=10), [4, 10, 55, 100], [1.0, 2.0, 1.0, 0.0]),
    # Two stairs of a half, at 80 and 90 of 100 steps.
    (dict(name='staircase', peak=2.0, warmup_steps=10, factor=0.5), [4, 9, 79, 80, 89, 90, 200],
     [1.0, 2.0, 2.0, 1.0, 1.0, 0.5, 0.5]),
    (dict(name='staircase', peak=1.0, at=(0.25,)), [24, 25], [1.0, 0.316]),
    (dict(name='cosine', peak=1.0, end_fraction=0.1), [0, 50, 100, 200], [1.0, 0.55, 0.1, 0.1]),
])
def test_values(section, steps, expected):
  np.testing.assert_allclose(rates(section, steps), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('section, message', [
    (dict(name='cosin', peak=1.0), "schedule.name='cosin' does not exist; nearest: cosine"),
    (dict(name='cosine', peak=1.0, warmup=3), "no field 'warmup'; nearest: warmup_steps"),
    (dict(name='cosine', peak=1.0, total_steps=3), "no field 'total_steps'"),
    (dict(name='linear'), "needs the field 'peak'"),
    (dict(name='_warm'), "does not exist")])
def test_wrong_fields_are_user_errors(section, message):
  with pytest.raises(errors.UserError, match=message):
    rates(section, [0])
