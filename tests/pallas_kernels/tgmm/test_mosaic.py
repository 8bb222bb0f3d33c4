"""Mosaic GPU's transpose of grouped matmul: interpreted it equals the reference, lowered for Hopper GPUs."""

import hypothesis
from hypothesis import strategies as st
import jax.numpy as jnp
import pytest

from pallas_kernels.tgmm import mosaic
from pallas_kernels.tgmm import reference
from tests.pallas_kernels import agree
from tests.pallas_kernels import hopper
from tests.pallas_kernels import interpreter
from tests.pallas_kernels.interpreter import ready  # noqa: F401


def check(sizes, m, k, n, interpret, tiles=None):
  x = agree.beyond(agree.normal(0, (m, k), 'bfloat16'), sum(sizes))
  dy = agree.beyond(agree.normal(1, (m, n), 'bfloat16'), sum(sizes))
  sizes = jnp.array(sizes, jnp.int32)
  got = mosaic._tgmm(x, dy, sizes, tiles, interpreter.PROGRAMS, interpret)
  agree.close(got, reference.tgmm(x.astype('float32'), dy.astype('float32'), sizes))


@pytest.mark.parametrize('sizes, m, k, n', [
    # Steps that begin early and end late.
    pytest.param((100, 0, 77, 150), 336, 128, 256, marks=pytest.mark.slow),
    # Sides that fill no tile, a full ring.
    pytest.param((3, 8, 128, 400, 5), 552, 256, 384, marks=pytest.mark.slow),
    pytest.param((1,) * 9 + (55,), 64, 128, 128, marks=pytest.mark.slow),
    ((0, 0), 16, 128, 128),
    pytest.param((64, 128), 192, 128, 256, marks=pytest.mark.slow)])                 # nothing to set to zero
def test_equals_the_reference(sizes, m, k, n, ready):  # noqa: F811
  check(sizes, m, k, n, ready)


def test_two_panels_of_the_result_lie_beside_a_short_ring(ready):  # noqa: F811
  tiles = mosaic.TILES._replace(stages=3)
  assert [mosaic._panels(t, 2) for t in (mosaic.TILES, tiles)] == [1, 2]
  assert mosaic._panels(tiles._replace(n=384, m=32), 2) == 3         # of 3 columns two would not take turns
  check((3, 0, 128, 70), 208, 256, 384, ready, tiles)


@pytest.mark.slow
@hypothesis.settings(max_examples=12, deadline=None, derandomize=True,
                     suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(sizes=st.lists(st.integers(0, 200), min_size=1, max_size=4), k=st.integers(1, 3),
                  n=st.integers(1, 3))
def test_equals_the_reference_at_any_shape(sizes, k, n, ready):  # noqa: F811
  check(sizes, sum(sizes) // 8 * 8 + 8, 128 * k, 128 * n, ready)


@pytest.mark.slow
def test_rows_of_other_experts_may_be_nan(ready):  # noqa: F811
  sizes, k, n = (20, 30, 30), 128, 128
  x, dy = agree.normal(0, (80, k), 'bfloat16'), agree.normal(1, (80, n), 'bfloat16')
  x, dy = x.at[:20].set(jnp.nan), dy.at[50:].set(jnp.nan)
  want = reference.tgmm(x.astype('float32'), dy.astype('float32'), jnp.array(sizes))
  got = mosaic._tgmm(x, dy, jnp.array(sizes, jnp.int32), None, interpreter.PROGRAMS, ready)
  agree.close(got[1], want[1])
  assert jnp.isnan(got[0]).all() and jnp.isnan(got[2]).all()


@pytest.mark.aot
@pytest.mark.parametrize('where', hopper.TARGETS)
@pytest.mark.parametrize('model', hopper.MODELS)
def test_is_lowered_for_hopper(model, where):
  rows, k, n, experts = hopper.MODELS[model]
  hopper.lower(where, mosaic.tgmm, ((rows, k), 'bfloat16'), ((rows, n), 'bfloat16'), ((experts,), 'int32'))


@pytest.mark.aot
@pytest.mark.parametrize('tiles', mosaic.candidates(8192, 4096, 14336, 8, 2)[1:])
def test_tiles_to_tune_are_lowered(tiles):
  hopper.lower('h100:1', lambda *args: mosaic.tgmm(*args, tiles=tiles),
               ((8192, 4096), 'bfloat16'), ((8192, 14336), 'bfloat16'), ((8,), 'int32'))
