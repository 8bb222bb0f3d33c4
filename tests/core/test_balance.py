"""The scope of balance losses under packing and microbatches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.core import balance
from stmoe.core import choices


@jax.jit
def losses(probs, choice, mask, segments, positions, tokens=None):
  sequence = balance.sequences(segments, positions)
  s = balance.shares(probs, choice, mask, sequence)
  return jnp.stack([balance.expert_loss(s, tokens), balance.device_loss(s, 2, tokens),
                    balance.communication_loss(s, choice, mask, sequence, 2, 1, tokens)])


def packed(rows, sequences, size=12):
  """The arguments of `losses`: `rows` lists the numbers of the sequences of every row."""
  E = sequences[0][0].shape[-1]
  probs, choice = np.full((3, size, E), 7.0, np.float32), np.zeros((3, size, 2), int)
  segments, positions = np.zeros((3, size), int), np.zeros((3, size), int)
  for r, row in enumerate(rows):
    start = 0
    for number, i in enumerate(row, 1):
      at = slice(start, start + len(sequences[i][0]))
      probs[r, at], choice[r, at] = sequences[i]
      segments[r, at], positions[r, at] = number, np.arange(at.stop - at.start)
      start = at.stop
  return probs, choice, segments > 0, segments, positions


def test_losses_are_those_of_the_sequences_however_they_are_packed():
  rng = np.random.default_rng(0)
  lengths = np.array([5, 3, 4])
  sequences = []
  for n in lengths:
    probs = rng.dirichlet([1.0] * 4, n)
    sequences.append((probs, np.argsort(-probs, axis=-1)[:, :2]))
  # Every sequence alone, weighted by its tokens: what all the ways of packing must give.
  expected = sum(n * losses(*packed([[i]], sequences)) for i, n in enumerate(lengths)) / lengths.sum()
  for rows in ([[0], [1], [2]], [[0, 1], [2]], [[0, 1, 2]]):
    np.testing.assert_allclose(losses(*packed(rows, sequences)), expected, rtol=1e-5)
  # A routing group of several rows, whose segments have equal numbers.
  group = [a.reshape(1, -1, *a.shape[2:]) for a in packed([[0], [1, 2]], sequences)]
  np.testing.assert_allclose(losses(*group), expected, rtol=1e-5)
  # Two microbatches, each divided by half the tokens of the batch.
  halves = [losses(*packed(rows, sequences), tokens=6.0) for rows in ([[0, 1]], [[2]])]
  np.testing.assert_allclose(sum(halves) / 2, expected, rtol=1e-5)
  # Taken for one sequence, they give something else.
  *fields, segments, positions = packed([[0, 1, 2]], sequences)
  assert not np.allclose(losses(*fields, np.minimum(segments, 1), positions * 0), expected, rtol=1e-2)


def test_values_at_balance():
  mask, choice = np.ones((1, 4), bool), jnp.array([[[0, 1], [2, 3], [1, 0], [3, 2]]])
  s = balance.shares(jnp.full((1, 4, 4), 0.25), choice, mask)
  assert balance.expert_loss(s) == balance.device_loss(s, 2) == 1
  assert balance.communication_loss(s, choice, mask, None, 2, 1) == 1      # each token reaches one device


def test_gradient_goes_through_the_probabilities_only():
  choice, mask = jnp.array([[[0], [0], [1]]]), np.ones((1, 3), bool)
  value = lambda p: balance.expert_loss(balance.shares(p, choice, mask))
  # d/dp = f_e / T with f = 2 * (2/3, 1/3).
  grad = jax.grad(value)(jnp.full((1, 3, 2), 0.5))
  np.testing.assert_allclose(grad[0], [[4 / 9, 2 / 9]] * 3, rtol=1e-6)


def test_groups_are_ranked_by_their_best_or_their_two_best():
  scores = jnp.array([[[0.5, -0.9, 0.1, 0.2], [-0.5, -0.9, -0.4, -2.0]]])
  inf = -np.inf
  np.testing.assert_allclose(choices.within_groups(scores, 2, 1)[0],
                             [[0.5, -0.9, inf, inf], [inf, inf, -0.4, -2.0]])
  np.testing.assert_allclose(choices.within_groups(scores, 2, 1, best=2)[0],
                             [[inf, inf, 0.1, 0.2], [-0.5, -0.9, inf, inf]])
  # Masked by 0 instead, the rejected experts would come first in the second token.
  assert choices.top(choices.within_groups(scores, 2, 1, best=2), 2).tolist() == [[[3, 2], [0, 1]]]


@pytest.mark.parametrize('k, groups, kept, least, said', [
    (9, 1, 1, 1, 'k=9 with num_experts=8; k is at least 1 and at most 8'),
    (2, 3, 3, 1, 'num_groups=3 does not divide num_experts=8 .*nearest: 1, 2, 4'),
    (2, 8, 4, 2, 'num_groups=8 .*groups of at least 2; nearest: 1, 2, 4'),
    (5, 4, 2, 1, 'kept_groups=2 of num_groups=4: groups of 2 experts, so k=5 needs at least 3'),
    (2, 4, 5, 1, 'kept_groups=5 of num_groups=4.* there are 4')])
def test_impossible_groups(k, groups, kept, least, said):
  with pytest.raises(errors.UserError, match=said):
    choices.check_groups('x', 8, k, groups, kept, least)
