"""Scaled rotary positions against their definitions written out pair by pair."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe import sections
from stmoe.parts import rotary
from stmoe.parts.rotary_scaling import dynamic
from stmoe.parts.rotary_scaling import linear
from stmoe.parts.rotary_scaling import llama3
from stmoe.parts.rotary_scaling import longrope

BASE, PAIRS = 5e5, 16
RATE = BASE ** (-np.arange(PAIRS) / PAIRS)


def rates(scaling, length=1):
  rate, size = scaling(jnp.asarray(RATE, jnp.float32), BASE, jnp.float32(length))
  assert size == 1
  return np.asarray(rate)


def test_linear_turns_a_position_like_an_earlier_one():
  np.testing.assert_allclose(rates(linear.Linear(factor=4.0)), RATE / 4, rtol=1e-6)
  scaled = rotary.table(jnp.array([[8]]), 2 * PAIRS, BASE, linear.Linear(factor=4.0))
  np.testing.assert_allclose(scaled, rotary.table(jnp.array([[2]]), 2 * PAIRS, BASE), atol=1e-6)


def of_llama(rate, factor=8.0, length=64, low=1.0, high=4.0):
  """A rate by its wavelength, as the model's authors have it."""
  wave = 2 * math.pi / rate
  if wave < length / high:
    return rate
  if wave > length / low:
    return rate / factor
  smooth = (length / wave - low) / (high - low)
  return (1 - smooth) * rate / factor + smooth * rate


def test_llama3_has_three_kinds_of_pairs():
  wanted = np.array([of_llama(rate) for rate in RATE])
  kinds = {float(np.float32(ratio)) for ratio in wanted / RATE}
  assert {1.0, 0.125} < kinds                                        # and those between
  np.testing.assert_allclose(rates(llama3.Llama3(factor=8.0, length=64)), wanted, rtol=1e-5)
  with pytest.raises(errors.UserError, match='high=1.0.*nearest: 4'):
    llama3.Llama3(factor=8.0, length=64, high=1.0)


@pytest.mark.parametrize('length, grown', [(5, 1.0), (32, 1.0), (48, 2.0), (320, 19.0)])
def test_dynamic_has_a_larger_base_past_the_length_of_training(length, grown):
  """Factor 2 and length 32: the base grows by 2 n / 32 - 1, to the power P / (P - 2)."""
  base = BASE * grown ** (2 * PAIRS / (2 * PAIRS - 2))
  wanted = base ** (-np.arange(PAIRS) / PAIRS)
  np.testing.assert_allclose(rates(dynamic.Dynamic(factor=2.0, length=32), length), wanted, rtol=1e-5)


def test_the_longest_text_of_a_row_decides_and_the_room_while_one_is_written():
  scaling, positions = dynamic.Dynamic(factor=2.0, length=4), np.array([[0, 1, 2], [0, 5, 9]])
  for room, lengths in ((None, (3, 10)), (7, (7, 7))):
    cos, _ = rotary.table(jnp.asarray(positions), 2 * PAIRS, BASE, scaling, room)
    wanted = np.cos(positions[..., None] * np.stack([rates(scaling, n) for n in lengths])[:, None])
    np.testing.assert_allclose(cos[:, :, 0], wanted, atol=1e-6)


@pytest.mark.parametrize('name', lookup.available('rotary_scaling'))
def test_every_scaling_is_a_section(name):
  assert not [key for key, field in lookup.fields('rotary_scaling', name).items() if field.range is None]


def test_a_scaling_without_a_name_is_yarn():
  """Configurations from before there were other scalings."""
  model = dict(name='lm', rotary_scaling=dict(factor=4.0, length=8, fast=32.0, slow=1.0, size=1.0))
  assert sections.whole(dict(model=model))['model']['rotary_scaling']['name'] == 'yarn'


def test_longrope_has_factors_of_short_and_of_long_texts():
  """Rates 1 and 1/10 (base 100, 2 pairs). Row 0 reaches 4 positions, row 1 reaches 5."""
  scaling = longrope.Longrope(short=(1.0, 2.0), long=(3.0, 4.0), length=4, short_size=1.5, long_size=0.5)
  positions = jnp.array([[0, 1, 3], [0, 2, 4]])
  of_short, of_long = (np.asarray(positions)[..., None] / np.array(at) for at in ((1, 20), (3, 40)))
  cos, sin = rotary.table(positions, 4, 100.0, scaling)
  for row, (angle, size) in enumerate(((of_short, 1.5), (of_long, 0.5))):
    np.testing.assert_allclose(cos[row, :, 0], np.cos(angle[row]) * size, rtol=1e-6)
    np.testing.assert_allclose(sin[row, :, 0], np.sin(angle[row]) * size, rtol=1e-6)
  for room, angle, size in ((4, of_short, 1.5), (5, of_long, 0.5)):  # while texts are written
    np.testing.assert_allclose(rotary.table(positions, 4, 100.0, scaling, room)[0][:, :, 0],
                               np.cos(angle) * size, rtol=1e-6)


def test_factors_are_of_pairs():
  with pytest.raises(errors.UserError, match='1 factors short and 2 long'):
    longrope.Longrope(short=(1.0,), long=(1.0, 2.0), length=4)
  scaling = longrope.Longrope(short=(1.0,), long=(2.0,), length=4)
  with pytest.raises(errors.UserError, match='1 factors for 2 pairs; nearest: 2 of each, or head_dim=2'):
    rotary.table(jnp.zeros((1, 1), jnp.int32), 4, 100.0, scaling)
