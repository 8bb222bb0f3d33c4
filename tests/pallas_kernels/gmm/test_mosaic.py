"""Mosaic GPU's grouped matmul: interpreted it equals the reference, and it is lowered for Hopper GPUs."""

import hypothesis
from hypothesis import strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import hopper as chip
from pallas_kernels.gmm import mosaic
from pallas_kernels.gmm import reference
from tests.pallas_kernels import agree
from tests.pallas_kernels import hopper
from tests.pallas_kernels import interpreter
from tests.pallas_kernels.interpreter import ready  # noqa: F401


def check(sizes, m, k, n, transposed, interpret, programs=interpreter.PROGRAMS):
  rows = sum(sizes)
  x = agree.beyond(agree.normal(0, (m, k), 'bfloat16'), rows)
  w = agree.normal(1, (len(sizes), *((n, k) if transposed else (k, n))), 'bfloat16')
  sizes = jnp.array(sizes, jnp.int32)
  got = mosaic._gmm(x, w, sizes, transposed, None, programs, interpret)
  agree.close(got, reference.gmm(x.astype('float32'), w.astype('float32'), sizes, transposed), rows)


def slow(*values):
  return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize('sizes, m, k, n, transposed', [
    slow((100, 0, 77, 150), 336, 128, 512, False),                   # tiles that begin early and end late
    slow((100, 0, 77, 150), 336, 128, 256, True),
    # Columns that fill no tile, a full ring; rows of one expert each; none at all; whole tiles.
    slow((3, 8, 128, 128, 5), 272, 384, 384, False), slow((1,) * 9 + (120,), 136, 128, 128, True),
    ((0, 0), 16, 128, 128, False), slow((128, 256), 384, 128, 128, False)])
def test_equals_the_reference(sizes, m, k, n, transposed, ready):  # noqa: F811
  check(sizes, m, k, n, transposed, ready)


@pytest.mark.slow
@hypothesis.settings(max_examples=12, deadline=None, derandomize=True,
                     suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(sizes=st.lists(st.integers(0, 200), min_size=1, max_size=4), k=st.integers(1, 3),
                  n=st.integers(1, 3), transposed=st.booleans())
def test_equals_the_reference_at_any_shape(sizes, k, n, transposed, ready):  # noqa: F811
  check(sizes, sum(sizes) // 8 * 8 + 8, 128 * k, 128 * n, transposed, ready)


@pytest.mark.parametrize('sizes, rows', [
    ((5, 0, 9, 160, 1), 184), ((0, 0), 8), ((1,) * 8, 8), ((3, 280), 288), ((128, 128), 256),
    ((7, 1, 8, 120), 136)])
def test_every_row_is_in_one_tile_of_its_expert(sizes, rows):
  table, number = map(np.array, mosaic._table(jnp.array(sizes, jnp.int32), rows, 128))
  assert table.shape[1] >= number[0]
  expert = [-1] * rows
  for e, at, first, end in table[:, :number[0]].T:
    assert at % chip.ALIGNED == 0 and at <= first < end <= at + 128
    for row in range(first, end):
      assert expert[row] == -1
      expert[row] = e
  assert expert == np.repeat(np.arange(len(sizes)), sizes).tolist() + [-1] * (rows - sum(sizes))


@pytest.mark.aot
@pytest.mark.parametrize('where', hopper.TARGETS)
@pytest.mark.parametrize('transposed', [False, True])
@pytest.mark.parametrize('model', hopper.MODELS)
def test_is_lowered_for_hopper(model, transposed, where):
  rows, k, n, experts = hopper.MODELS[model]
  w = (experts, n, k) if transposed else (experts, k, n)
  hopper.lower(where, lambda x, w, sizes: mosaic.gmm(x, w, sizes, transposed=transposed),
               ((rows, k), 'bfloat16'), (w, 'bfloat16'), ((experts,), 'int32'))


@pytest.mark.aot
@pytest.mark.parametrize('tiles', mosaic.candidates(8192, 4096, 14336, 8, 2)[1:])
def test_tiles_to_tune_are_lowered(tiles):
  hopper.lower('h100:1', lambda *args: mosaic.gmm(*args, tiles=tiles),
               ((8192, 4096), 'bfloat16'), ((8, 4096, 14336), 'bfloat16'), ((8,), 'int32'))


@pytest.mark.aot
def test_too_much_shared_memory_is_found_out():
  with pytest.raises(ValueError, match='shared memory'):
    hopper.lower('h100:1', lambda *args: mosaic.gmm(*args, tiles=mosaic.TILES._replace(stages=5)),
                 ((8192, 4096), 'bfloat16'), ((8, 4096, 14336), 'bfloat16'), ((8,), 'int32'))
