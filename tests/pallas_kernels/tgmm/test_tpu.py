"""The kernel for TPUs, interpreted, equals the reference."""

import hypothesis
import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import vmem
from pallas_kernels.tgmm import reference
from pallas_kernels.tgmm import tpu
from tests.pallas_kernels import agree
from tests.pallas_kernels import cases

TILES = vmem.Tiles(16, 128, 128)


def check(sizes, rows, inner, outer, dtype, tiles, interpret=True):
  x, dy = cases.rows(0, sizes, rows, inner, dtype), cases.rows(1, sizes, rows, outer, dtype)
  sizes = jnp.array(sizes)
  got = tpu.tgmm(x, dy, sizes, tiles=tiles, interpret=interpret)
  assert got.dtype == dtype
  agree.close(got, reference.tgmm(x.astype(jnp.float32), dy.astype(jnp.float32), sizes))
  assert not got[sizes == 0].any()


@pytest.mark.parametrize('case, dtype', cases.TYPED)
def test_groups_get_the_product_of_their_rows(case, dtype):
  check(*cases.SIZES[case], 24, 40, dtype, TILES)


@pytest.mark.slow
@pytest.mark.parametrize('inner, outer', [(256, 128), (300, 150), (128, 257)])
@pytest.mark.parametrize('dtype', [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_sizes_need_not_be_those_of_tiles(inner, outer, dtype):
  check([7, 0, 20, 13], 50, inner, outer, dtype, TILES)


@pytest.mark.slow
@hypothesis.settings(max_examples=10, deadline=None, derandomize=True)
@hypothesis.given(cases.sorted_rows(), hypothesis.strategies.integers(1, 140),
                  hypothesis.strategies.integers(1, 140))
def test_any_shape(drawn, inner, outer):
  check(*drawn, inner, outer, jnp.float32, TILES)


def test_blocks_are_not_read_before_they_are_there():
  assert not cases.races(lambda interpret: check([7, 0, 20], 30, 150, 130, jnp.float32, TILES, interpret))


@pytest.mark.parametrize('shape', [(8192, 4096, 14336, 8), (131072, 1024, 2048, 64), (1, 1, 1, 1),
                                   (64, 14336, 4096, 8), (1000, 2050, 77, 3)])
@pytest.mark.parametrize('itemsize', [2, 4])
def test_default_tiles_fit(shape, itemsize):
  m, k, n = tpu.candidates(*shape, itemsize)[0]
  assert tpu._bytes(vmem.Tiles(m, k, n), itemsize) <= vmem.DEFAULT
  assert m % 16 == 0 and (k == shape[1] or k % 128 == 0) and (n == shape[2] or n % 128 == 0)


def test_default_tiles_compute_the_same():
  check([7, 0, 20, 13], 50, 300, 150, jnp.bfloat16, None)


@pytest.mark.slow
def test_processes_with_64_bits_compute_the_same():
  with jax.enable_x64(True):
    check([7, 0, 20, 13], 50, 130, 150, jnp.float32, TILES)
