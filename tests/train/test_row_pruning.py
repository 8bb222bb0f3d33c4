"""Pruning in training: the least important rows of all matrices together, which may come back."""

import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.train import groups
from stmoe.train import optimizers

PATHS = {('a',), ('b',)}
NAMES = dict(a=('expert_embed', 'expert_mlp'), b=('expert_mlp', 'expert_embed'), c=('embed',))
ONES = dict(a=jnp.ones((2, 3)), b=jnp.ones((4, 2)), c=jnp.ones(2))


def optimizer(pruned, paths=frozenset(PATHS), steps=3):
  members = [groups.group_of('sparse', paths, pruned=pruned), groups.group_of('', {('c',)})]
  return groups.optimizer(members, lambda group, n, s: optimizers.sgd(n, s), NAMES, ONES, steps)


def test_rows_are_pruned_by_importance_and_come_back():
  pruner = optimizer(dict(kept=0.5, before=1, after=1, memory=0.0))
  # The means are 0.5, 1, 1.5 of a's rows, of 2 entries each, and 0.25, 2 of b's, of 4 entries each. The 7th
  # smallest of 14 entries is 1. What is smaller goes: 4 entries of 0.25 and 2 of 0.5.
  grads = dict(a=jnp.array([[1.0, 2.0, 3.0], [0, 0, 0]]), c=jnp.zeros(2),
               b=jnp.zeros((4, 2)).at[0].set(jnp.array([1.0, 8.0])))
  params, state = ONES, pruner.init(ONES)
  still = jnp.float32(0.0)
  params, state = pruner.update(grads, state, params, still, 0)
  np.testing.assert_array_equal(params['a'], ONES['a'])              # the first step is before
  params, state = pruner.update(grads, state, params, still, 2)      # the last keeps half
  assert params['a'].tolist() == [[0, 1, 1], [0, 1, 1]] and params['b'].tolist() == [[0, 1]] * 4
  np.testing.assert_array_equal(params['c'], ONES['c'])
  moved, _ = pruner.update(grads, state, params, jnp.float32(0.1), 0)
  np.testing.assert_allclose(moved['a'][0], [-0.1, 0.8, 0.7], rtol=1e-6)      # no mask in that step


@pytest.mark.parametrize('pruned, paths, steps, said', [
    (dict(kept=0.5, before=2, after=1), PATHS, 3, r'pruned: 2 steps .*train.steps=3; nearest: .*=4'),
    (dict(kept=0.5, before=0, after=0), PATHS | {('c',)}, 3, 'groups.sparse.pruned: c is no matrix')])
def test_what_cannot_be_pruned_is_one_line(pruned, paths, steps, said):
  with pytest.raises(errors.UserError, match=said):
    optimizer(pruned, frozenset(paths), steps)
