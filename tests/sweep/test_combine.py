"""Grids of overrides: every combination once, in a known order; mistakes are named."""

import pytest

from stmoe import errors
from stmoe.sweep import combine

AB = combine.over('a', [1, 2, 3])
XY = combine.over('x', 'pq')


def test_product_zip_and_chain():
  assert combine.product(AB, XY) == [
      {'a': 1, 'x': 'p'}, {'a': 1, 'x': 'q'}, {'a': 2, 'x': 'p'}, {'a': 2, 'x': 'q'}, {'a': 3, 'x': 'p'},
      {'a': 3, 'x': 'q'}]
  assert combine.zip(AB[:2], XY) == [{'a': 1, 'x': 'p'}, {'a': 2, 'x': 'q'}]
  assert combine.chain(AB, XY) == [*AB, *XY]
  assert combine.product() == [{}] and AB == [{'a': 1}, {'a': 2}, {'a': 3}]


def test_subsample_is_a_seeded_part_in_order():
  grid = combine.over('a', range(100))
  part = combine.subsample(grid, 10, seed=3)
  assert part == combine.subsample(grid, 10, seed=3) != combine.subsample(grid, 10, seed=4)
  values = [one['a'] for one in part]
  assert values == sorted(set(values)) and len(values) == 10
  assert combine.subsample(grid, 100) == grid


@pytest.mark.parametrize('call, words', [
    (lambda: combine.product(AB, AB), 'a is in two grids'),
    (lambda: combine.zip(AB, XY), 'grids of 3, 2 entries'),
    (lambda: combine.subsample(AB, 4), '4 of a grid of 3; nearest: 3')])
def test_mistakes(call, words):
  with pytest.raises(errors.UserError, match=words):
    call()
