"""Triton's grouped matmul: interpreted it equals the reference, and it compiles for Hopper GPUs."""

import functools

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import triton
from pallas_kernels.gmm import gpu
from pallas_kernels.gmm import reference
from tests.pallas_kernels import agree
from tests.pallas_kernels import hopper
from tests.pallas_kernels.bounds import strict  # noqa: F401

TILES = triton.Tiles(m=16, n=16, k=16, warps=4, stages=2, band=2)
# M, K, N, sizes
SHAPES = [(40, 32, 48, (16, 0, 16, 0)), (50, 24, 20, (3, 30, 0, 17)), (50, 24, 20, (0, 50, 0)),
          (7, 33, 17, (0, 0)), (9, 1, 1, (1,) * 9), (3, 5, 40, (1, 0, 0, 0, 0, 1))]


@functools.partial(jax.jit, static_argnums=(4, 5))
def run(x, w, sizes, token, transposed, tiles=TILES):
  return gpu._gmm(x, w, sizes, token, transposed, tiles, interpret=True)


def check(m, k, n, sizes, transposed, dtype, gather=False, run=run):
  rows = sum(sizes)
  x = agree.normal(0, (m, k), dtype)
  w = agree.normal(1, (len(sizes), n, k) if transposed else (len(sizes), k, n), dtype)
  sizes = jnp.array(sizes, jnp.int32)
  token = jax.random.randint(jax.random.key(2), (m + 5,), 0, m) if gather else None
  moved = x[token] if gather else x
  want = reference.gmm(moved.astype(jnp.float32), w.astype(jnp.float32), sizes, transposed)
  x = x if gather else agree.beyond(x, rows)
  agree.close(run(x, w, sizes, token, transposed), want, rows)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('transposed', [False, True])
@pytest.mark.parametrize('m, k, n, sizes', SHAPES)
def test_equals_the_reference(m, k, n, sizes, transposed, dtype):
  check(m, k, n, sizes, transposed, dtype)


@hypothesis.settings(max_examples=6, deadline=None, derandomize=True)
@hypothesis.given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=5), spare=st.integers(1, 20),
                  k=st.integers(1, 40), n=st.integers(1, 40), transposed=st.booleans(), gather=st.booleans(),
                  dtype=st.sampled_from(['float32', 'bfloat16']))
def test_equals_the_reference_at_any_shape(sizes, spare, k, n, transposed, gather, dtype):
  check(sum(sizes) + spare, k, n, sizes, transposed, dtype, gather)


@pytest.mark.parametrize('transposed', [False, True])
def test_rows_are_gathered_while_they_are_loaded(transposed):
  check(30, 20, 24, (5, 0, 17, 9), transposed, 'float32', gather=True)


def test_tiles_may_run_in_any_order(monkeypatch):
  table = gpu._table
  monkeypatch.setattr(gpu, '_table', lambda *args: table(*args)[:, ::-1])
  check(50, 24, 20, (3, 30, 0, 17), False, 'float32', run=lambda *args: run.__wrapped__(*args))


@pytest.mark.parametrize('sizes, rows, m', [
    ((5, 0, 9, 16, 1), 31, 16), ((0, 0), 4, 16), ((1, 1, 1), 3, 16), ((3, 28), 40, 4), ((7,), 7, 2),
    ((0, 2), 2, 16)])
def test_every_row_is_in_one_tile_of_its_expert(sizes, rows, m):
  table = np.array(gpu._table(jnp.array(sizes, jnp.int32), rows, m))
  expert = [-1] * rows
  for e, first, end in table.T:
    for row in range(first, min(first + m, end)):
      assert expert[row] == -1
      expert[row] = e
  want = np.repeat(np.arange(len(sizes)), sizes).tolist()
  assert expert == want + [-1] * (rows - sum(sizes))


def test_grid_has_room_for_the_worst_sizes_and_no_more():
  for sizes, rows, m in [((1, 1, 30), 32, 16), ((1, 1, 1), 3, 16), ((17, 1), 18, 16)]:
    table = np.array(gpu._table(jnp.array(sizes, jnp.int32), rows, m))
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
  call = lambda x, w, sizes, token=None: gpu.gmm(x, w, sizes, transposed=transposed, token=token)
  kernel = hopper.compile(where, tmp_path, 'gmm', call, *args)
  hopper.fits(kernel)


@pytest.mark.aot
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('rows, k, n, experts', [(16, 2048, 1408, 64), (2000, 2048, 1408, 64),
                                                 (300, 75, 33, 4), (40000, 1407, 2049, 8)])
def test_compiles_for_few_rows_and_odd_sizes(rows, k, n, experts, dtype, tmp_path):
  kernel = hopper.compile('h100:1', tmp_path, 'gmm', gpu.gmm, ((rows, k), dtype), ((experts, k, n), dtype),
                          ((experts,), 'int32'))
  hopper.fits(kernel)
