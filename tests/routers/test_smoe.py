"""The plain SMoE router on an example worked by hand: gates of the chosen logits, bias, balance loss."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.routers import smoe

ONE = np.ones((1, 1), bool)
route = jax.jit(smoe.smoe, static_argnums=2)


def test_gates_are_the_softmax_of_the_chosen_logits(edges):
  # Of (1, 0, 1 + ln 3, -2) the experts 2 and 0 win; e^(ln 3) : e^0 = 3 : 1, whatever the others are.
  a, aux = route(jnp.array([[[1.0, 0.0, 1 + np.log(3), -2.0]]]), ONE, 2)
  assert edges(a) == {(0, 2, 0, 0.75), (0, 0, 0, 0.25)}
  assert aux.load.tolist() == [1, 0, 1, 0]


def test_nothing_is_dropped_and_padding_goes_nowhere(edges):
  logits = jnp.tile(jnp.array([2.0, 1.0, 0.0]), (1, 4, 1))
  a, aux = route(logits, np.array([[True, False, True, True]]), 2)
  # All want the same two experts: e^2 : e^1 = 0.7311 : 0.2689.
  assert edges(a) == {(t, e, s, g) for s, t in enumerate((0, 2, 3)) for e, g in ((0, 0.7311), (1, 0.2689))}
  assert aux.metrics['drop_frac'] == 0 and aux.load.tolist() == [3, 3, 0]


def test_balance_loss_of_the_paper():
  # n = (2, 1, 1) of T k = 4 choices; p sums to (1, 0.5, 0.5): 3 (2/4 1/4 + 1/4 0.5/4 + 1/4 0.5/4) = 9/16.
  logits = jnp.log(jnp.array([[[0.5, 0.3, 0.2], [0.5, 0.2, 0.3]]]))
  loss = lambda l: route(l, np.ones((1, 2), bool), 2)[1].losses['balance']
  np.testing.assert_allclose(loss(logits), 0.5625, rtol=1e-6)
  np.testing.assert_allclose(loss(jnp.zeros((1, 2, 3))), 0.5, rtol=1e-6)           # 1 / k at uniform p


def test_the_gate_has_a_bias(call, context, edges):
  router = smoe.SMoE(4, num_experts=3, rngs=nnx.Rngs(0))
  router.w[...], router.b[...] = jnp.zeros((4, 3)), jnp.array([0.0, np.log(3), 5.0])
  a = call(router, jnp.ones((1, 1, 4)), context(ONE)).assignment
  # exp(5) : 3
  assert edges(a) == {(0, 2, 0, round(148.41316 / 151.41316, 4)), (0, 1, 0, round(3 / 151.41316, 4))}


@pytest.mark.parametrize('k', [1, 4])
def test_one_choice_would_never_learn(k):
  with pytest.raises(errors.UserError, match=f'router smoe: k={k} with num_experts=3; k is at least 2'):
    smoe.SMoE(4, num_experts=3, k=k, rngs=nnx.Rngs(0))
