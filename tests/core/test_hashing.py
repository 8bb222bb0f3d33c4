"""What Hash layers look up, beyond the examples of the docstrings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe.core import hashing


def rows(lengths, seed=0):
  """(ids, positions) i32[rows, T] of packed documents of these lengths, one list a row; 0 pads the end."""
  rng = np.random.default_rng(seed)
  width = max(sum(row) for row in lengths)
  ids, positions = np.zeros((len(lengths), width), np.int32), np.zeros((len(lengths), width), np.int32)
  for i, row in enumerate(lengths):
    places = np.concatenate([np.arange(n) for n in row])
    positions[i, :len(places)] = places
    ids[i, :len(places)] = rng.integers(1, 99, len(places))
  return ids, positions


@pytest.mark.parametrize('groups', [1, 2, 8])
def test_neighbours_stay_in_their_document_wherever_groups_cut(groups):
  ids, positions = rows([[5, 3], [8]])
  earlier, later = np.zeros_like(ids), np.zeros_like(ids)
  for r, t in np.ndindex(ids.shape):
    if positions[r, t] > 0:
      earlier[r, t] = ids[r, t - 1]
    if t + 1 < ids.shape[1] and positions[r, t + 1] > 0:
      later[r, t] = ids[r, t + 1]
  cut = lambda a: jnp.asarray(a).reshape(groups, -1)
  np.testing.assert_array_equal(hashing.before(cut(ids), cut(positions)), cut(earlier))
  np.testing.assert_array_equal(hashing.after(cut(ids), cut(positions)), cut(later))


def test_bigram_does_not_overflow():
  rng = np.random.default_rng(0)
  ids, earlier = rng.integers(0, 267_739, (2, 4, 50))
  for experts in (3, 64, 1000):
    expected = [[(int(x) % experts + hashing.PRIME * int(y) % experts) % experts for x, y in zip(*row)]
                for row in zip(ids, earlier)]
    found = hashing.bigram(jnp.asarray(ids, jnp.int32), jnp.asarray(earlier, jnp.int32), experts)
    np.testing.assert_array_equal(found, expected)


def test_bigram_depends_on_both_tokens():
  ids = jnp.arange(64)[None]
  for experts in (4, 16, 64):
    one = hashing.bigram(ids, jnp.zeros_like(ids), experts)
    other = hashing.bigram(ids, jnp.ones_like(ids), experts)
    assert not jnp.any(one == other)       # p mod K is not 0
    assert len(set(np.asarray(hashing.bigram(jnp.zeros_like(ids), ids, experts))[0])) == experts


def test_fresh_draws_are_uniform_and_ignore_the_token():
  ids = jnp.zeros((4, 1000), jnp.int32)
  drawn = hashing.fresh(jax.random.key(0), jnp.array([2]), ids, 5)
  load = np.bincount(np.asarray(drawn).ravel(), minlength=5)
  assert load.shape == (5,) and abs(load - 800).max() < 130          # 5 standard deviations
