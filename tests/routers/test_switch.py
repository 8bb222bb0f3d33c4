"""Switch on an example worked by hand, and its exploration policies."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.routers import switch

ALL = np.ones((1, 4), bool)
route = jax.jit(switch.switch, static_argnums=2, static_argnames='explore')


def test_by_hand(logits, edges):
  a, aux = route(logits, ALL, 2)
  # Tokens 0 and 1 fill expert 0, token 2 comes too late, token 3 is alone at expert 1.
  assert edges(a) == {(0, 0, 0, 0.8), (1, 0, 1, 0.6), (3, 1, 0, 0.9)}
  assert aux.load.tolist() == [3, 1]
  assert aux.metrics['drop_frac'] == aux.metrics['left_behind'] == 0.25
  # f = (3/4, 1/4), P = (2.2/4, 1.8/4): 2 * (0.75 * 0.55 + 0.25 * 0.45) = 1.05.
  np.testing.assert_allclose(aux.losses['balance'], 1.05, rtol=1e-6)
  np.testing.assert_allclose(aux.losses['z'], 0, atol=1e-12)          # logits are log probabilities
  np.testing.assert_allclose(aux.metrics['router_conf'], (0.8 + 0.6 + 0.9) / 3, rtol=1e-6)
  np.testing.assert_allclose(aux.metrics['slot_usage'], 3 / 4)


def test_padding_frees_its_slot(logits, edges):
  a, aux = route(logits, np.array([[True, False, True, True]]), 2)
  assert edges(a) == {(0, 0, 0, 0.8), (2, 0, 1, 0.7), (3, 1, 0, 0.9)}
  # f = (2/3, 1/3), P = (1.6/3, 1.4/3): 2 * (3.2 + 1.4) / 9.
  np.testing.assert_allclose(aux.losses['balance'], 9.2 / 9, rtol=1e-6)


def test_ties_go_to_the_first_expert():
  a, _ = route(jnp.zeros((1, 4, 2)), ALL, 4)
  assert a.expert.tolist() == [[0, 0, 0, 0]]


def test_gradient_of_the_weight_is_that_of_the_probability(logits):
  # d p_0 / d logits of token 0 is p_0 (1 - p_0), -p_0 p_1 = +-0.16; token 2 is dropped and gets none.
  grad = jax.grad(lambda l: jnp.sum(jnp.where(jnp.arange(4) != 2, route(l, ALL, 2)[0].weight, 0)))(logits)
  np.testing.assert_allclose(grad[0, 0], [0.16, -0.16], rtol=1e-5)
  assert not jnp.any(grad[0, 2])


def test_sampling_follows_the_probabilities(logits):
  # Token 1 has p = (0.6, 0.4): expert 1 from uniform 0.6 on.
  for uniform, expert in ((0.59, 0), (0.61, 1)):
    a, _ = route(logits, ALL, 4, explore=switch.EXPLORATION['sample'], uniform=jnp.full((1, 4), uniform))
    assert a.expert[0, 1] == expert
    np.testing.assert_allclose(a.weight[0, 1], (0.6, 0.4)[expert], rtol=1e-6)


@pytest.mark.parametrize('fields', [dict(jitter=0.5), dict(jitter=0.0, input_dropout=0.5),
                                    dict(jitter=0.0, exploration='sample')])
def test_exploration_in_training_only(fields, call, context):
  router = switch.Switch(8, num_experts=4, rngs=nnx.Rngs(0), **fields)
  plain = switch.Switch(8, num_experts=4, rngs=nnx.Rngs(0), jitter=0.0)
  router.w[...] = plain.w[...] = jax.random.normal(jax.random.key(0), (8, 4))
  x, mask, key = jax.random.normal(jax.random.key(1), (1, 32, 8)), np.ones((1, 32), bool), jax.random.key(2)
  expert = lambda router, key, train: np.asarray(
      call(router, x, context(mask, key=key, train=train)).assignment.expert)
  assert (expert(router, key, True) != expert(plain, key, True)).any()
  np.testing.assert_array_equal(expert(router, key, True), expert(router, key, True))
  np.testing.assert_array_equal(expert(router, key, False), expert(plain, None, False))


def test_jitter_never_reaches_the_experts(call, context):
  x = jnp.ones((1, 4, 8))
  router = switch.Switch(8, num_experts=2, jitter=0.5, rngs=nnx.Rngs(0))
  routed = call(router, x, context(ALL, key=jax.random.key(0), train=True))
  assert routed.carry == {} and jnp.all(x == 1)
  # Equal tokens, but the router saw unequal views of them.
  assert len(set(np.asarray(routed.assignment.weight[0]).tolist())) == 4


def test_unknown_exploration():
  with pytest.raises(errors.UserError, match="exploration has no choice 'sampel'; nearest: sample"):
    switch.Switch(8, num_experts=2, exploration='sampel', rngs=nnx.Rngs(0))
