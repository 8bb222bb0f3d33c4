"""Visits are the pairs of a group and a tile with rows of it, in order, and no more than their bound."""

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import groups
from tests.pallas_kernels import cases


@pytest.mark.parametrize('empty', [False, True])
@pytest.mark.parametrize('case', cases.SIZES)
def test_visits_are_those_of_a_loop(case, empty):
  check(*cases.SIZES[case], 16, empty)


@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
@hypothesis.given(hypothesis.strategies.lists(hypothesis.strategies.integers(0, 25), min_size=4, max_size=4),
                  hypothesis.strategies.sampled_from([1, 8, 64]), hypothesis.strategies.booleans())
def test_any_sizes(sizes, height, empty):
  check(sizes, 100, height, empty)


def check(sizes, rows, height, empty):
  want, row = [], 0
  for group, size in enumerate(sizes):
    tiles = dict.fromkeys(r // height for r in range(row, row + size))
    want += [(group, tile) for tile in tiles] or ([(group, None)] if empty else [])
    row += size
  found = groups.visits(jnp.array(sizes), rows, height, empty=empty)
  bound = -(-rows // height) + len(sizes) - 1
  assert found.group.shape == found.tile.shape == (bound,)
  assert int(found.count) == max(1, len(want)) <= bound
  assert found.start.tolist() == [0, *np.cumsum(sizes)]
  got = list(zip(found.group.tolist(), found.tile.tolist()))[:len(want)]
  assert [(g, t if w[1] is not None else None) for (g, t), w in zip(got, want)] == want
  assert 0 <= int(found.tile.min()) and int(found.tile.max()) < -(-rows // height)
  assert 0 <= int(found.group.min()) and int(found.group.max()) < len(sizes)
