"""TC-MoE by numbers worked by hand: signs, nulls, an expert with both signs, the balance loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe.core import assignment
from stmoe.errors import UserError
from stmoe.routers import tc_moe

# Two experts, entries +0 +1 -0 -1 and two nulls; the biases are 0 here.
P = jnp.array([[[0.5, 0.05, 0.3, 0.05, 0.06, 0.04],                  # +0 and -0: one edge
                [0.1, 0.05, 0.05, 0.5, 0.1, 0.2],                    # -1 and a null
                [0.1, 0.05, 0.05, 0.0, 0.5, 0.3]]])                  # two nulls: nothing is computed


def route(probs=P, k=2):
  mask = jnp.ones(probs.shape[:2], bool)
  return jax.jit(lambda logits: tc_moe.tc_moe(logits, mask, k, 2, negative_bias=0.0, null_bias=0.0))(
      jnp.log(jnp.maximum(probs, 1e-20)))


def test_edges_are_signed_merged_or_dead():
  a, aux = route()
  weights = assignment.masks(a)[1].sum(-1)[0]                        # [S, E]
  expected = [[0.5 / 0.9 - 0.3 / 0.9, 0], [0, -0.5 / 0.8], [0, 0]]   # over named choices plus all nulls
  np.testing.assert_allclose(weights, expected, rtol=1e-5, atol=1e-7)
  assert aux.load.tolist() == [1, 1] and int(assignment.live(a).sum()) == 2
  told = [aux.metrics[name] for name in ('null_share', 'negative_share', 'active_experts', 'left_behind')]
  np.testing.assert_allclose(told, [3 / 6, 2 / 6, 2 / 3, 1 / 3], rtol=1e-5)
  np.testing.assert_allclose(aux.losses['reward'], -(0.1 + 0.3 + 0.8) / 3, rtol=1e-5)


def test_the_balance_loss_is_of_choices_that_are_no_nulls():
  # f = (2, 1) / 3; P_0 = mean(0.8 / 0.9, 0.15 / 0.7, 0.15 / 0.2).
  first = np.mean([0.8 / 0.9, 0.15 / 0.7, 0.15 / 0.2])
  np.testing.assert_allclose(route()[1].losses['balance'], (2 * first + 1 - first) / 3, rtol=1e-5)
  even = jnp.full((1, 2, 6), 1 / 6)
  np.testing.assert_allclose(route(even)[1].losses['balance'], 1 / 2, rtol=1e-5)   # 1 / E


def test_more_expected_experts_than_choices_are_refused():
  with pytest.raises(UserError, match='expected=3.0 experts of a token, but k=2; nearest: 2'):
    tc_moe.TcMoe(4, num_experts=4, expected=3.0, rngs=None)


def test_only_nulls_leave_no_nan():
  certain = np.array([-200.0] * 4 + [200.0] * 2, np.float32)
  loss = lambda logits: sum(tc_moe.tc_moe(logits, jnp.ones((1, 2), bool), 2, 2)[1].losses.values())
  assert np.isfinite(jax.jit(jax.grad(loss))(jnp.broadcast_to(certain, (1, 2, 6)))).all()
