"""The kernel for TPUs, interpreted, equals the reference: the same experts, also where probabilities tie."""

import hypothesis
from hypothesis import strategies
import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.route import reference
from pallas_kernels.route import tpu
from tests.pallas_kernels import agree
from tests.pallas_kernels import cases


def check(logits, k, interpret=True):
  weight, expert, counts = tpu.route(logits, k, interpret=interpret)
  want = reference.route(logits, k)
  assert (weight.dtype, expert.dtype, counts.dtype) == (jnp.float32, jnp.int32, jnp.int32)
  np.testing.assert_allclose(weight, want[0], rtol=1e-6, atol=1e-30)
  np.testing.assert_array_equal(expert, want[1])
  np.testing.assert_array_equal(counts, want[2])


@pytest.mark.parametrize('tokens, experts, k', [(50, 7, 3), (1, 1, 1), (20, 4, 4), (1100, 8, 2),
                                                (40, 300, 8)])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_the_largest_are_chosen(tokens, experts, k, dtype):
  check(agree.normal(0, (tokens, experts), dtype), k)


def test_the_lower_of_equal_ones_comes_first():
  check(jnp.round(agree.normal(0, (64, 16))), 5)
  check(jnp.zeros((8, 5)), 5)


def test_ruled_out_experts_come_last():
  logits = agree.normal(0, (30, 6)).at[:, ::2].set(-jnp.inf)
  check(logits, 4)


def test_a_tile_counts_no_tokens_beyond_the_last(monkeypatch):
  monkeypatch.setattr(tpu, 'TILE', 16 * 128 * 4)
  check(agree.normal(0, (40, 6)), 2, pltpu.InterpretParams(uninitialized_memory='zero'))


@pytest.mark.slow
@hypothesis.settings(max_examples=8, deadline=None, derandomize=True)
@hypothesis.given(strategies.integers(1, 60), strategies.integers(1, 140), strategies.data())
def test_any_shape(tokens, experts, data):
  check(agree.normal(0, (tokens, experts)), data.draw(strategies.integers(1, min(experts, 8))))


def test_tiles_do_not_race(monkeypatch):
  monkeypatch.setattr(tpu, 'TILE', 16 * 128 * 4)
  assert not cases.races(lambda interpret: check(agree.normal(0, (40, 6)), 2, interpret))


def test_processes_with_64_bits_compute_the_same():
  with jax.enable_x64(True):
    check(agree.normal(0, (50, 7), jnp.float32), 3)
