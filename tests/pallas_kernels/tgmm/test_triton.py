"""Triton's transposed grouped matmul: interpreted it equals the reference; it compiles for Hopper GPUs."""

import functools

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import triton
from pallas_kernels.tgmm import api
from pallas_kernels.tgmm import triton as kernel
from pallas_kernels.tgmm import reference
from tests.pallas_kernels import agree
from tests.pallas_kernels import cases
from tests.pallas_kernels import hopper
from tests.pallas_kernels.bounds import strict  # noqa: F401

TILES = triton.Tiles(m=16, n=16, k=16, warps=4, stages=2, band=2)


@functools.partial(jax.jit, static_argnums=(5,))
def run(x, dy, sizes, token, dy_token, tiles=TILES):
  return kernel._tgmm(x, dy, sizes, token, dy_token, tiles, interpret=True)


def check(sizes, m, k, n, dtype, gather=False, gather_dy=False):
  x, dy = cases.rows(0, sizes, m, k, dtype), cases.rows(1, sizes, m, n, dtype)
  sizes = jnp.array(sizes, jnp.int32)
  x, token = scattered(x, 2) if gather else (x, None)
  dy, dy_token = scattered(dy, 3) if gather_dy else (dy, None)
  moved = [v if t is None else v[t] for v, t in ((x, token), (dy, dy_token))]
  want = reference.tgmm(*(v.astype(jnp.float32) for v in moved), sizes)
  agree.close(run(x, dy, sizes, token, dy_token), want)


def scattered(rows, seed):
  """Returns (the rows in another order, with more in between that are NaN; where each of them is)."""
  place = jax.random.permutation(jax.random.key(seed), len(rows) + 9)[:len(rows)]
  return jnp.full((len(rows) + 9, rows.shape[1]), jnp.nan, rows.dtype).at[place].set(rows), place


@pytest.mark.parametrize('case, dtype', cases.TYPED)
def test_experts_get_the_products_of_their_rows(case, dtype):
  check(*cases.SIZES[case], 24, 20, dtype)


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['float32', pytest.param('bfloat16', marks=pytest.mark.slow)])
@pytest.mark.parametrize('k, n', [(32, 48), (33, 17), (1, 1), (5, 40)])
def test_widths_need_not_be_those_of_tiles(k, n, dtype):
  check((7, 0, 20, 13), 50, k, n, dtype)


@pytest.mark.slow
@pytest.mark.parametrize('gather, gather_dy', [(True, False), (False, True), (True, True)])
def test_rows_are_gathered_while_they_are_loaded(gather, gather_dy):
  check((5, 0, 17, 9), 34, 20, 24, 'float32', gather, gather_dy)


@pytest.mark.slow
@hypothesis.settings(max_examples=6, deadline=None, derandomize=True)
@hypothesis.given(rows=cases.sorted_rows(), k=st.integers(1, 40), n=st.integers(1, 40),
                  dtype=st.sampled_from(['float32', 'bfloat16']))
def test_equals_the_reference_at_any_shape(rows, k, n, dtype):
  check(*rows, k, n, dtype)


@pytest.mark.aot
@pytest.mark.parametrize('where', hopper.TARGETS)
@pytest.mark.parametrize('product', ['up', 'up gathered', 'down', 'down gathered'])
@pytest.mark.parametrize('model, dtype', hopper.CASES)
def test_compiles_for_hopper(model, dtype, product, where, tmp_path):
  rows, d, f, experts = hopper.MODELS[model]
  args = [((rows, d), dtype), ((rows, f), dtype), ((experts,), 'int32')]
  call = kernel.tgmm
  if product.endswith('gathered'):                                   # the side that tokens have
    args[0] = ((rows // 2, d), dtype)
    args.append(((rows,), 'int32'))
    call = lambda x, dy, sizes, token: kernel.tgmm(x, dy, sizes, token=token)
  if product.startswith('down'):
    args[:2] = args[1::-1]
    call = kernel.tgmm if len(args) == 3 else (
        lambda x, dy, sizes, token: kernel.tgmm(x, dy, sizes, dy_token=token))
  itemsize, (k, n) = jnp.dtype(dtype).itemsize, (args[0][0][1], args[1][0][1])
  t = kernel.default_tiles(rows, k, n, experts, itemsize)
  hopper.fits(hopper.compile(where, tmp_path, 'tgmm', call, *args), t.stages * t.m * (t.k + t.n) * itemsize)


@pytest.mark.aot
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('rows, k, n, experts', [(16, 2048, 1408, 64), (2000, 2048, 1408, 64),
                                                 (300, 75, 33, 4), (40000, 1407, 2049, 8)])
def test_compiles_for_few_rows_and_odd_sizes(rows, k, n, experts, dtype, tmp_path):
  # Through the public function, which leaves the choice to the platform.
  hopper.fits(hopper.compile('h100:1', tmp_path, 'tgmm', api.tgmm, ((rows, k), dtype), ((rows, n), dtype),
                             ((experts,), 'int32')))
