"""Tables of Hash layers and their files, beyond the examples of the docstrings."""

import random

import numpy as np
import pytest

from stmoe import errors
from stmoe.core import tables


def zipf(vocab_size=500, seed=0):
  """Counts with a long tail, a fifth of the ids unseen."""
  rng = np.random.default_rng(seed)
  counts = (1e5 / np.arange(1, vocab_size + 1)).astype(np.int64)
  counts[-vocab_size // 5:] = 0
  return rng.permutation(counts)


def test_random_table_leaves_the_global_generator_alone():
  random.seed(1)
  before = random.getstate()
  table = tables.random_table(1000, 7, 3)
  assert random.getstate() == before
  assert table.dtype == np.int32 and set(table) == set(range(7))
  np.testing.assert_array_equal(table, tables.random_table(1000, 7, 3))
  assert (table != tables.random_table(1000, 7, 4)).mean() > 0.5


def test_balanced_table_is_as_even_as_the_most_frequent_id_allows():
  counts, experts = zipf(), 8
  load = tables.loads(tables.balanced_table(counts, experts), counts, experts)
  top = counts.max()                       # 15 % of the mass: over an eighth, so it is alone
  assert load.max() == top
  rest = np.sort(load)[:-1]
  assert rest.max() - rest.min() <= counts[counts > 0].min()         # the last ids fill up the others
  # Far from it: a random table.
  assert tables.loads(tables.random_table(500, experts, 0), counts, experts).max() > 1.2 * top


def test_balanced_table_deals_unseen_ids_evenly():
  counts = np.array([9, 9, 9, 9] + [0] * 41)
  table = tables.balanced_table(counts, 4)
  np.testing.assert_array_equal(table[:4], [0, 1, 2, 3])             # ties: lower id, lower bucket
  sizes = np.bincount(table, minlength=4)
  assert sizes.max() - sizes.min() <= 1


def test_dispersed_table_spreads_clusters_and_stays_balanced():
  counts, experts = zipf(), 8
  clusters = np.random.default_rng(1).integers(0, 63, 500)
  table = tables.dispersed_table(clusters, counts, experts)
  for cluster in range(63):
    sizes = np.bincount(table[clusters == cluster], minlength=experts)
    assert sizes.max() - sizes.min() <= 1  # no bucket has a second member before all have one
  load = tables.loads(table, counts, experts)
  assert load.max() < 1.3 * counts.max()


TABLE = tables.TableFile(np.array([1, 0, 2], np.int32), 3, 'balanced', 'digest')


def test_file_round_trip(tmp_path):
  TABLE.write(tmp_path / 'table')
  found = tables.read(tmp_path / 'table')
  np.testing.assert_array_equal(found.table, TABLE.table)
  assert (found.num_experts, found.kind, found.vocabulary) == (3, 'balanced', 'digest')


def _pickled(path):
  with open(path, 'wb') as f:
    np.savez(f, table=np.array([{}], object), num_experts=3, kind='balanced', vocabulary='d', vocab_size=1)


def _truncated(path):
  TABLE.write(path)
  path.write_bytes(path.read_bytes()[:100])


def _array(path):
  with open(path, 'wb') as f:
    np.save(f, TABLE.table)


def _other(**fields):
  def write(path):
    with open(path, 'wb') as f:
      np.savez(f, **dict(dict(table=TABLE.table, num_experts=3, kind='balanced', vocabulary='d',
                              vocab_size=3), **fields))
  return write


@pytest.mark.parametrize('write, said', [
    (lambda path: None, 'no hash table'),
    (lambda path: path.write_text('text'), 'not a hash table'),
    (lambda path: path.write_bytes(b''), 'not a hash table'),
    (_pickled, 'not a hash table'),
    (_truncated, 'not a hash table'),
    (_array, 'not a hash table'),
    (_other(num_experts=2), 'one bucket below 2'),
    (_other(table=np.array([0, -1, 1])), 'one bucket below 3'),
    (_other(vocab_size=4), '4 ids'),
    (_other(table=np.zeros(0, int), vocab_size=0), '0 ids'),
    (_other(num_experts=[3, 3]), 'no num_experts'),
    (_other(table=['a', 'b', 'c']), 'no table'),
])
def test_what_is_no_table_is_refused(tmp_path, write, said):
  write(tmp_path / 'table.npz')
  with pytest.raises(errors.UserError, match=said) as caught:
    tables.read(tmp_path / 'table.npz')
  assert 'table.npz' in str(caught.value)
