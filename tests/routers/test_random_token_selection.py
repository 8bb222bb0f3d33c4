"""Random token selection drops as many tokens as order does, and does not starve the end of a group."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe.core import assignment
from stmoe.routers import pr_moe

GROUPS, SIZE, EXPERTS, CAPACITY = 2000, 16, 4, 3                     # 0.75 slots a token


@pytest.mark.slow
def test_drops_by_position():
  """Z-code M3 (arXiv:2109.10465): by order the chance to be dropped rises from 0, at random it is flat."""
  keys = jax.random.split(jax.random.key(0), 2)
  logits, uniform = (jax.random.normal(key, (GROUPS, SIZE, EXPERTS)) for key in keys)
  mask = jnp.ones((GROUPS, SIZE), bool)

  @jax.jit
  def dropped(uniform):
    a, _ = pr_moe.pr_moe(logits, mask, CAPACITY, 1, keep='random', uniform=uniform)
    return ~assignment.live(a)                                       # [G, S], as there is one choice
  by_order, at_random = map(np.asarray, (dropped(None), dropped(uniform)))
  np.testing.assert_array_equal(by_order.sum(1), at_random.sum(1))   # the same choices, the same totals
  by_order, at_random = by_order.mean(0), at_random.mean(0)
  assert (by_order[:CAPACITY] == 0).all() and (np.diff(by_order[CAPACITY:]) > -0.02).all()
  assert by_order[-1] > 0.6
  error = (at_random.mean() * (1 - at_random.mean()) / GROUPS) ** 0.5
  assert np.abs(at_random - at_random.mean()).max() < 4 * error
