"""What the kernels for GPUs share."""

import itertools

import pytest

from pallas_kernels import triton


@pytest.mark.parametrize('rows, columns, group', [(5, 3, 2), (1, 4, 8), (8, 1, 8), (9, 2, 4), (3, 3, 1)])
def test_snake_visits_every_tile_once_and_moves_one_column_at_a_time(rows, columns, group):
  tiles = [tuple(map(int, triton.snake(i, rows, columns, group))) for i in range(rows * columns)]
  assert sorted(tiles) == list(itertools.product(range(rows), range(columns)))
  assert all(abs(b[1] - a[1]) <= 1 for a, b in itertools.pairwise(tiles))
