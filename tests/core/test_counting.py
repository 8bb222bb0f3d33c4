"""Counting of edges by expert, of few ids and of many, of short lists and of long ones."""

import jax
import numpy as np
import pytest

from stmoe.core.units import counting


def sorts(groups, edges, num_ids):
  """Whether the ranks of lists i32[groups,edges] come from a sort."""
  lists = jax.ShapeDtypeStruct((groups, edges), np.int32)
  return 'sort[' in str(jax.make_jaxpr(lambda expert: counting.rank_in_expert(expert, num_ids))(lists))


def test_many_ids_and_long_lists_are_sorted():
  assert not sorts(8, 256, 33) and sorts(8, 256, 65)
  assert not sorts(1, 2**15, 33) and sorts(1, 2**17, 33) and sorts(16, 2**13, 33)
  assert not sorts(1, 2**17, 9)


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
