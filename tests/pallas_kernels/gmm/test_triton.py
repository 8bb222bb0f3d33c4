"""Triton's grouped matmul: interpreted it equals the reference, and it compiles for Hopper GPUs."""

import functools

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import triton
from pallas_kernels.gmm import api
from pallas_kernels.gmm import triton as kernel
from pallas_kernels.gmm import reference
from tests.pallas_kernels import agree
from tests.pallas_kernels import cases
from tests.pallas_kernels import hopper
from tests.pallas_kernels.bounds import strict  # noqa: F401

TILES = triton.Tiles(m=16, n=16, k=16, warps=4, stages=2, band=2)


@functools.partial(jax.jit, static_argnums=(4, 5))
def run(x, w, sizes, token, transposed, tiles=TILES):
  return kernel._gmm(x, w, sizes, token, transposed, tiles, interpret=True)


def check(sizes, m, k, n, transposed, dtype, gather=False, run=run):
  rows = sum(sizes)
  x = agree.normal(0, (m, k), dtype)
  w = agree.normal(1, (len(sizes), n, k) if transposed else (len(sizes), k, n), dtype)
  sizes = jnp.array(sizes, jnp.int32)
  token = jax.random.randint(jax.random.key(2), (m + 5,), 0, m) if gather else None
  moved = x[token] if gather else x
  want = reference.gmm(moved.astype(jnp.float32), w.astype(jnp.float32), sizes, transposed)
  x = x if gather else agree.beyond(x, rows)
  agree.close(run(x, w, sizes, token, transposed), want, rows)


@pytest.mark.parametrize('case, dtype', cases.TYPED)
def test_rows_get_the_matrix_of_their_expert(case, dtype):
  check(*cases.SIZES[case], 24, 20, False, dtype)


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['float32', pytest.param('bfloat16', marks=pytest.mark.slow)])
@pytest.mark.parametrize('transposed', [False, True])
@pytest.mark.parametrize('k, n', [(32, 48), (33, 17), (1, 1), (5, 40)])
def test_widths_need_not_be_those_of_tiles(k, n, transposed, dtype):
  check((7, 0, 20, 13), 50, k, n, transposed, dtype)


@pytest.mark.slow
@hypothesis.settings(max_examples=6, deadline=None, derandomize=True)
@hypothesis.given(rows=cases.sorted_rows(), k=st.integers(1, 40), n=st.integers(1, 40),
                  transposed=st.booleans(), gather=st.booleans(),
                  dtype=st.sampled_from(['float32', 'bfloat16']))
def test_equals_the_reference_at_any_shape(rows, k, n, transposed, gather, dtype):
  check(*rows, k, n, transposed, dtype, gather)


@pytest.mark.parametrize('transposed', [False, True])
def test_rows_are_gathered_while_they_are_loaded(transposed):
  check((5, 0, 17, 9), 31, 20, 24, transposed, 'float32', gather=True)


def test_tiles_may_run_in_any_order(monkeypatch):
  table = kernel._table
  monkeypatch.setattr(kernel, '_table', lambda *args: table(*args)[:, ::-1])
  check((3, 30, 0, 17), 50, 24, 20, False, 'float32', run=lambda *args: run.__wrapped__(*args))


@pytest.mark.parametrize('sizes, rows, m', [
    ((5, 0, 9, 16, 1), 31, 16), ((0, 0), 4, 16), ((1, 1, 1), 3, 16), ((3, 28), 40, 4), ((7,), 7, 2),
    ((0, 2), 2, 16)])
def test_every_row_is_in_one_tile_of_its_expert(sizes, rows, m):
  table = np.array(kernel._table(jnp.array(sizes, jnp.int32), rows, m))
  expert = [-1] * rows
  for e, first, end in table.T:
    for row in range(first, min(first + m, end)):
      assert expert[row] == -1
      expert[row] = e
  want = np.repeat(np.arange(len(sizes)), sizes).tolist()
  assert expert == want + [-1] * (rows - sum(sizes))


def test_grid_has_room_for_the_worst_sizes_and_no_more():
  for sizes, rows, m in [((1, 1, 30), 32, 16), ((1, 1, 1), 3, 16), ((17, 1), 18, 16)]:
    table = np.array(kernel._table(jnp.array(sizes, jnp.int32), rows, m))
    assert table.shape[1] == sum(-(-size // m) for size in sizes) and (table[1] < table[2]).all()


@pytest.mark.aot
@pytest.mark.parametrize('where', hopper.TARGETS)
@pytest.mark.parametrize('product', ['up', 'up gathered', 'up transposed', 'down', 'down transposed'])
@pytest.mark.parametrize('model, dtype', hopper.CASES)
def test_compiles_for_hopper(model, dtype, product, where, tmp_path):
  rows, d, f, experts = hopper.MODELS[model]
  k, n = (d, f) if (product.startswith('up') != product.endswith('transposed')) else (f, d)
  transposed = product.endswith('transposed')
  matrix = (experts, n, k) if transposed else (experts, k, n)
  args = [((rows, k), dtype), (matrix, dtype), ((experts,), 'int32')]
  if product.endswith('gathered'):
    args[0] = ((rows // 2, k), dtype)
    args.append(((rows,), 'int32'))
  call = lambda x, w, sizes, token=None: kernel.gmm(x, w, sizes, transposed=transposed, token=token)
  itemsize = jnp.dtype(dtype).itemsize
  t = kernel.default_tiles(rows, k, n, experts, itemsize)
  hopper.fits(hopper.compile(where, tmp_path, 'gmm', call, *args), t.stages * (t.m + t.n) * t.k * itemsize)


@pytest.mark.aot
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('rows, k, n, experts', [(16, 2048, 1408, 64), (2000, 2048, 1408, 64),
                                                 (300, 75, 33, 4), (40000, 1407, 2049, 8)])
def test_compiles_for_few_rows_and_odd_sizes(rows, k, n, experts, dtype, tmp_path):
  # Through the public function, which leaves the choice to the platform.
  hopper.fits(hopper.compile('h100:1', tmp_path, 'gmm', api.gmm, ((rows, k), dtype), ((experts, k, n), dtype),
                             ((experts,), 'int32')))


@pytest.mark.aot
@pytest.mark.parametrize('number', range(12))
def test_what_tuning_times_compiles(number, tmp_path):
  rows, k, n, experts = hopper.MODELS['mixtral']
  tiles = kernel.candidates(rows, k, n, experts, 2)[number]
  call = lambda x, w, sizes: kernel.gmm(x, w, sizes, tiles=tiles)
  args = ((rows, k), 'bfloat16'), ((experts, k, n), 'bfloat16'), ((experts,), 'int32')
  found = hopper.compile('h100:1', tmp_path, 'gmm', call, *args)
  assert found.shared <= hopper.BLOCK and found.products > 0         # some may spill: the clock decides
