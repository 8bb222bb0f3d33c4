"""The kernel for TPUs, interpreted, equals the reference."""

import hypothesis
import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import vmem
from pallas_kernels.gmm import reference
from pallas_kernels.gmm import tpu
from tests.pallas_kernels import agree
from tests.pallas_kernels import cases

TILES = vmem.Tiles(16, 128, 128)


def check(sizes, rows, inner, outer, dtype, transposed, tiles, interpret=True):
  sizes_ = jnp.array(sizes)
  x = cases.rows(0, sizes, rows, inner, dtype)
  shape = (outer, inner) if transposed else (inner, outer)
  w = agree.normal(1, (len(sizes), *shape), dtype)
  got = tpu.gmm(x, w, sizes_, transposed=transposed, tiles=tiles, interpret=interpret)
  assert got.dtype == dtype
  want = reference.gmm(x.astype(jnp.float32), w.astype(jnp.float32), sizes_, transposed)
  agree.close(got, want, sum(sizes))


@pytest.mark.parametrize('case, dtype', cases.TYPED)
def test_rows_get_the_matrix_of_their_group(case, dtype):
  check(*cases.SIZES[case], 24, 40, dtype, False, TILES)


@pytest.mark.slow
@pytest.mark.parametrize('inner, outer', [(256, 128), (300, 150), (128, 257)])
@pytest.mark.parametrize('dtype', [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
@pytest.mark.parametrize('transposed', [False, True])
def test_sizes_need_not_be_those_of_tiles(inner, outer, dtype, transposed):
  check([7, 0, 20, 13], 50, inner, outer, dtype, transposed, TILES)


@pytest.mark.slow
@hypothesis.settings(max_examples=10, deadline=None, derandomize=True)
@hypothesis.given(cases.sorted_rows(), hypothesis.strategies.integers(1, 280),
                  hypothesis.strategies.integers(1, 140), hypothesis.strategies.booleans())
def test_any_shape(drawn, inner, outer, transposed):
  check(*drawn, inner, outer, jnp.float32, transposed, TILES)


@pytest.mark.parametrize('inner', [24, 200])
def test_blocks_are_not_read_before_they_are_there(inner):
  assert not cases.races(lambda interpret: check(
      [7, 0, 20], 30, inner, 150, jnp.float32, False, TILES, interpret))


@pytest.mark.parametrize('shape', [(8192, 4096, 14336, 8), (131072, 1024, 2048, 64), (1, 1, 1, 1),
                                   (64, 14336, 4096, 8), (1000, 2050, 77, 3)])
@pytest.mark.parametrize('itemsize', [2, 4])
def test_default_tiles_fit(shape, itemsize):
  rows, inner, outer, experts = shape
  m, k, n = tpu.candidates(rows, inner, outer, experts, itemsize)[0]
  assert tpu._bytes(vmem.Tiles(m, k, n), -(-inner // k), itemsize) <= vmem.DEFAULT
  assert m % 16 == 0 and (k == inner or k % 128 == 0) and (n == outer or n % 128 == 0)


def test_default_tiles_compute_the_same():
  check([7, 0, 20, 13], 50, 300, 150, jnp.bfloat16, False, None)


@pytest.mark.slow
def test_processes_with_64_bits_compute_the_same():
  with jax.enable_x64(True):
    check([7, 0, 20, 13], 50, 200, 150, jnp.float32, True, TILES)
