"""The kernel for TPUs, interpreted, equals the reference."""

import hypothesis
from hypothesis import strategies
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import vmem
from pallas_kernels.combine import reference
from pallas_kernels.combine import tpu
from tests.pallas_kernels import agree
from tests.pallas_kernels import cases


def check(rows, tokens, k, width, dtype, weighted=True, interpret=True):
  """The last row is read by nobody and NaN, as are weights of choices without a row."""
  at = jax.random.randint(jax.random.key(0), (tokens, k), -1, rows - 1)
  x = agree.beyond(agree.normal(1, (rows, width), dtype), rows - 1)
  weight = jnp.where(at < 0, jnp.nan, agree.normal(2, (tokens, k))) if weighted else None
  got = tpu.combine(x, at, weight, interpret=interpret)
  assert got.dtype == dtype
  agree.close(got, reference.combine(x.astype(jnp.float32), at, weight))


@pytest.mark.parametrize('dtype', [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
@pytest.mark.parametrize('weighted', [True, False])
@pytest.mark.parametrize('rows, tokens, k, width', [(40, 20, 2, 128), (41, 150, 3, 200), (9, 5, 1, 30)])
def test_tokens_get_the_sum_of_their_rows(rows, tokens, k, width, dtype, weighted):
  check(rows, tokens, k, width, dtype, weighted)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_wide_rows_come_in_columns(dtype, monkeypatch):
  monkeypatch.setattr(tpu, 'BUFFERS', 2 * 3 * 16 * 128 * 4)
  assert tpu.sizes(40, 3, 384, 2)[0] == 128
  check(50, 40, 3, 384, dtype)


def test_tokens_without_rows_get_zeros():
  rows, at = jnp.full((4, 128), jnp.nan), jnp.full((20, 2), -1)
  np.testing.assert_array_equal(tpu.combine(rows, at, jnp.full((20, 2), jnp.nan), interpret=True), 0)


@pytest.mark.slow
@hypothesis.settings(max_examples=6, deadline=None, derandomize=True)
@hypothesis.given(strategies.integers(2, 60), strategies.integers(1, 40), strategies.integers(1, 4),
                  strategies.integers(1, 200), strategies.sampled_from([jnp.float32, jnp.bfloat16]))
def test_any_shape(rows, tokens, k, width, dtype):
  check(rows, tokens, k, width, dtype)


@pytest.mark.slow
def test_rows_are_not_added_before_they_are_there():
  """In float32: this interpreter knows no pairs of bfloat16. Three chunks take turns in two buffers."""
  assert tpu.sizes(300, 2, 128, 4)[1] == 128
  assert not cases.races(lambda interpret: check(40, 300, 2, 128, jnp.float32, True, interpret))


@pytest.mark.parametrize('shape', [(16384, 8, 2048), (16384, 8, 7168), (10, 64, 8192), (1, 1, 128),
                                   (4096, 2, 4096)])
def test_buffers_fit(shape):
  _, k, width = shape
  columns, chunk, block = tpu.sizes(*shape, 2)
  assert width % columns == 0 and block % chunk == 0
  assert 2 * k * chunk * columns * 4 + 2 * block * columns * 2 <= vmem.DEFAULT - 2**21


@pytest.mark.slow
def test_processes_with_64_bits_compute_the_same():
  with jax.enable_x64(True):
    check(41, 20, 3, 200, jnp.bfloat16)
