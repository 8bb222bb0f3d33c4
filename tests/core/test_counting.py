"""Counting of edges by expert, of few ids and of many."""

import jax
import numpy as np
import pytest

from stmoe.core.units import counting


@pytest.mark.parametrize('num_ids', [counting.MANY, counting.MANY + 1])
def test_ranks_and_counts_are_those_of_a_walk_through_the_list(num_ids):
  expert = np.asarray(jax.random.randint(jax.random.key(0), (2, 300), 0, num_ids))
  for group, ranks, counts in zip(expert, counting.rank_in_expert(expert, num_ids),
                                  counting.counts(expert, num_ids)):
    seen = np.zeros(num_ids, int)
    for e, rank in zip(group, ranks):
      assert rank == seen[e]
      seen[e] += 1
    np.testing.assert_array_equal(counts, seen)
