"""Triton's gather and sum: interpreted it equals the reference, and it compiles for Hopper GPUs."""

import functools

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.combine import gpu
from pallas_kernels.combine import reference
from tests.pallas_kernels import agree
from tests.pallas_kernels import hopper
from tests.pallas_kernels.bounds import strict  # noqa: F401

run = jax.jit(functools.partial(gpu._combine, interpret=True))


def check(tokens, k, width, dtype, weighted, live=0.7):
  """With as many rows as there are edges, and some that belong to none."""
  keys = jax.random.split(jax.random.key(0), 3)
  rows = tokens * k + 3
  there = jax.random.bernoulli(keys[0], live, (tokens, k))
  at = jnp.where(there, jax.random.permutation(keys[1], rows)[:tokens * k].reshape(tokens, k), -1)
  used = jnp.zeros(rows, bool).at[jnp.where(there, at, rows)].set(True, mode='drop')
  x = jnp.where(used[:, None], agree.normal(1, (rows, width), dtype), jnp.nan)
  weight = jnp.where(there, jax.random.uniform(keys[2], (tokens, k)), jnp.nan) if weighted else None
  agree.close(run(x, at, weight), reference.combine(x.astype(jnp.float32), at, weight))


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('weighted', [True, False])
@pytest.mark.parametrize('tokens, k, width', [(16, 2, 1024), (5, 3, 40), (2, 1, 1100), (3, 8, 2048)])
def test_equals_the_reference(tokens, k, width, weighted, dtype):
  check(tokens, k, width, dtype, weighted)


@pytest.mark.parametrize('live', [0., 1.])
def test_none_or_all_of_the_choices_have_rows(live):
  check(9, 2, 33, 'float32', True, live)


@pytest.mark.slow
@hypothesis.settings(max_examples=6, deadline=None, derandomize=True)
@hypothesis.given(tokens=st.integers(1, 40), k=st.integers(1, 4), width=st.integers(1, 50),
                  weighted=st.booleans(), dtype=st.sampled_from(['float32', 'bfloat16']))
def test_equals_the_reference_at_any_shape(tokens, k, width, weighted, dtype):
  check(tokens, k, width, dtype, weighted)


@pytest.mark.aot
@pytest.mark.parametrize('where', hopper.TARGETS)
@pytest.mark.parametrize('weighted', [True, False])
@pytest.mark.parametrize('tokens, k, width, dtype', [
    (4096, 2, 4096, 'bfloat16'), (16384, 6, 2048, 'bfloat16'), (16384, 8, 2048, 'bfloat16'),
    (16384, 6, 2048, 'float32'), (5, 3, 75, 'bfloat16')])
def test_compiles_for_hopper(tokens, k, width, dtype, weighted, where, tmp_path):
  args = [((tokens * k, width), dtype), ((tokens, k), 'int32')] + [((tokens, k), 'float32')] * weighted
  kernel = hopper.compile(where, tmp_path, 'combine', gpu.combine, *args)
  assert kernel.spilled == 0 and kernel.shared <= hopper.BLOCK, kernel
