"""Triton's routing: interpreted it equals the reference, and it compiles for Hopper GPUs."""

import functools

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.route import gpu
from pallas_kernels.route import reference
from tests.pallas_kernels import agree
from tests.pallas_kernels import hopper
from tests.pallas_kernels.bounds import strict  # noqa: F401

run = jax.jit(functools.partial(gpu._route, interpret=True), static_argnums=1)


def check(logits, k):
  weight, expert, counts = run(logits, k)
  want = reference.route(logits, k)
  np.testing.assert_allclose(weight, want[0], rtol=1e-5)
  np.testing.assert_array_equal(expert, want[1])
  np.testing.assert_array_equal(counts, want[2])
  assert (weight.dtype, expert.dtype, counts.dtype) == ('float32', 'int32', 'int32')


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', pytest.param('float16', marks=pytest.mark.slow)])
@pytest.mark.parametrize('tokens, experts, k', [(300, 64, 8), (5, 7, 7), (600, 16, 1), (3, 1, 1),
                                                (20, 300, 20)])
def test_equals_the_reference(tokens, experts, k, dtype):
  check(agree.normal(0, (tokens, experts), dtype), k)


def test_ties_go_to_the_lower_expert():
  check(jnp.round(agree.normal(0, (300, 20))), 5)
  check(jnp.zeros((4, 9)), 4)


def test_experts_may_be_ruled_out():
  logits = agree.normal(0, (50, 12)).at[:, ::2].set(-jnp.inf)
  check(logits, 8)                                                   # two of them are ruled out


@pytest.mark.slow
@hypothesis.settings(max_examples=6, deadline=None, derandomize=True)
@hypothesis.given(data=st.data(), tokens=st.integers(1, 400), experts=st.integers(1, 40))
def test_equals_the_reference_at_any_shape(data, tokens, experts):
  check(agree.normal(1, (tokens, experts)), data.draw(st.integers(1, experts)))


@pytest.mark.aot
@pytest.mark.parametrize('where', hopper.TARGETS)
@pytest.mark.parametrize('tokens, experts, k, dtype', [
    (4096, 8, 2, 'float32'), (16384, 64, 6, 'float32'), (32768, 64, 8, 'bfloat16'),
    (16384, 256, 8, 'float32'), (100, 75, 20, 'float32'), (4096, 2048, 8, 'float32')])
def test_compiles_for_hopper(tokens, experts, k, dtype, where, tmp_path):
  call = lambda logits: gpu.route(logits, k)
  kernel = hopper.compile(where, tmp_path, 'route', call, ((tokens, experts), dtype))
  assert kernel.spilled == 0 and kernel.shared <= hopper.BLOCK, kernel
