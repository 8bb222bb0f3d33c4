"""Mesh's expert selection on an example worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from stmoe.routers import expert_selection

# Softmax over tokens of log p is p over its column's sum. Column 0 is 0.8 0.6 0.7 0.1 of 2.2.
route = jax.jit(expert_selection.expert_selection, static_argnums=2)


def test_weights_are_shares_over_the_number_of_takers(logits, edges):
  a, _ = route(logits, np.ones((1, 4), bool), 3)
  # Expert 0 takes 0, 2, 1 and expert 1 (sum 1.8) takes 3, 1, 2; tokens 1 and 2 are shared by two.
  share = lambda p, column, takers=1: round(p / column / takers, 4)
  expected = {(0, 0, 0, share(0.8, 2.2)), (2, 0, 1, share(0.7, 2.2, 2)), (1, 0, 2, share(0.6, 2.2, 2)),
              (3, 1, 0, share(0.9, 1.8)), (1, 1, 1, share(0.4, 1.8, 2)), (2, 1, 2, share(0.3, 1.8, 2))}
  assert edges(a) == expected


def test_padding_takes_no_share(logits, edges):
  a, aux = route(logits, np.array([[True, True, False, False]]), 2)
  assert edges(a) == {(0, 0, 0, round(0.8 / 1.4 / 2, 4)), (1, 0, 1, round(0.6 / 1.4 / 2, 4)),
                      (1, 1, 0, round(0.4 / 0.6 / 2, 4)), (0, 1, 1, round(0.2 / 0.6 / 2, 4))}
  # P = mean of (8/14, 1/3) and of (6/14, 2/3): n * sum of squares.
  expected = 2 * (((8 / 14 + 1 / 3) / 2) ** 2 + ((6 / 14 + 2 / 3) / 2) ** 2)
  np.testing.assert_allclose(aux.losses['balance'], expected, rtol=1e-5)


def test_equally_wanted_tokens_have_loss_one():
  _, aux = route(jnp.zeros((2, 4, 2)), np.ones((2, 4), bool), 2)
  np.testing.assert_allclose(aux.losses['balance'], 1.0, rtol=1e-6)
