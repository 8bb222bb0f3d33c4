"""ST-MoE's routing on an example worked by hand: gates, second choices, batch priority, losses."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.routers import st_moe

ALL = np.ones((1, 4), bool)
route = jax.jit(st_moe.st_moe, static_argnums=(2, 3), static_argnames=(
    'second_policy', 'threshold', 'normalize_gates', 'batch_priority', 'balance_choices'))


def test_batch_priority_drops_the_least_sure_token(logits, edges):
  # Largest probabilities 0.8, 0.6, 0.7, 0.9: within expert 0 the order is 0, 2, 1.
  a, _ = route(logits, ALL, 2, 1, batch_priority=True)
  assert edges(a) == {(0, 0, 0, 0.8), (2, 0, 1, 0.7), (3, 1, 0, 0.9)}
  a, _ = route(logits, ALL, 2, 1)
  assert edges(a) == {(0, 0, 0, 0.8), (1, 0, 1, 0.6), (3, 1, 0, 0.9)}


def test_batch_priority_orders_second_choices_too(logits, edges):
  a, _ = route(logits, ALL, 2, 2, second_policy='all', batch_priority=True)
  # One slot is left at expert 1; among second choices of expert 1 (tokens 0, 2, 1) token 0 comes first.
  assert edges(a) == {(0, 0, 0, 0.8), (2, 0, 1, 0.7), (3, 1, 0, 0.9), (0, 1, 1, 0.2)}


def test_batch_priority_is_by_the_raw_probability():
  # Over the sum of its two gates token 0 would come first: 0.6 against 0.5556.
  logits = jnp.log(jnp.array([[[0.45, 0.3, 0.25], [0.5, 0.4, 0.1]]]))
  a, _ = route(logits, np.ones((1, 2), bool), 1, 2, second_policy='none', batch_priority=True)
  assert a.expert.tolist() == [[3, 0, 3, 3]]                         # 3 = E: dropped, or not sent


def test_normalised_and_raw_gates():
  logits = jnp.log(jnp.array([[[0.5, 0.3, 0.2]]]))
  one = np.ones((1, 1), bool)
  a, _ = route(logits, one, 1, 2, second_policy='all')
  np.testing.assert_allclose(a.weight, [[0.625, 0.375]], rtol=1e-6)
  a, _ = route(logits, one, 1, 2, second_policy='all', normalize_gates=False)
  np.testing.assert_allclose(a.weight, [[0.5, 0.3]], rtol=1e-6)
  a, _ = route(logits, one, 1, 1)
  np.testing.assert_allclose(a.weight, [[0.5]], rtol=1e-6)


def test_a_second_choice_that_is_not_sent_leaves_the_first_gate(logits, edges):
  # g2 = 0.2, 0.4, 0.3, 0.1: only token 1 is above 0.35.
  a, aux = route(logits, ALL, 4, 2, second_policy='threshold', threshold=0.35)
  assert edges(a) == {(0, 0, 0, 0.8), (1, 0, 1, 0.6), (2, 0, 2, 0.7), (3, 1, 0, 0.9), (1, 1, 1, 0.4)}
  assert aux.load.tolist() == [3, 2]


def test_second_choice_is_sent_with_probability_gate_over_threshold():
  # g2 = 0.1 and tau = 0.2: half of the uniforms.
  logits = jnp.log(jnp.broadcast_to(jnp.array([0.9, 0.1]), (1, 100, 2)))
  uniform = ((jnp.arange(100) + 0.5) / 100).reshape(1, 100, 1)
  _, aux = route(logits, np.ones((1, 100), bool), 100, 2, uniform=uniform)
  assert aux.load.tolist() == [100, 50]


def test_first_or_any_choice_in_the_balance_loss(logits):
  first = route(logits, ALL, 4, 2)[1].losses['balance']
  any_choice = route(logits, ALL, 4, 2, balance_choices='any')[1].losses['balance']
  np.testing.assert_allclose(first, 1.05, rtol=1e-6)
  np.testing.assert_allclose(any_choice, 2.0, rtol=1e-6)             # f = (1, 1): twice the sum of P


def test_router_z_loss_has_its_gradient():
  logits = jnp.array([[[1.0, 2.0, 3.0]]])
  loss = lambda l: route(l, np.ones((1, 1), bool), 1, 2)[1].losses['z']
  lse = jax.nn.logsumexp(logits)
  np.testing.assert_allclose(loss(logits), lse ** 2, rtol=1e-6)
  np.testing.assert_allclose(jax.grad(loss)(logits), 2 * lse * jax.nn.softmax(logits), rtol=1e-5)


def test_training_draws_and_evaluation_does_not(call, context):
  router = st_moe.STMoE(8, num_experts=4, threshold=1.0, rngs=nnx.Rngs(0))
  x, mask = jax.random.normal(jax.random.key(1), (1, 64, 8)), np.ones((1, 64), bool)
  load = lambda key, train: call(router, x, context(mask, key=key, train=train)).aux.load.sum()
  draws = {float(load(jax.random.key(i), True)) for i in range(3)}
  assert len(draws) > 1 and all(64 < total < 128 for total in draws)
  assert load(jax.random.key(0), False) == load(None, False)


def test_batch_priority_is_refused_in_causal_stacks(call, context):
  router = st_moe.STMoE(8, num_experts=2, batch_priority=True, rngs=nnx.Rngs(0))
  x = jnp.ones((1, 4, 8))
  with pytest.raises(errors.UserError, match='batch_priority=True lets later tokens decide'):
    call(router, x, context(ALL, causal=True))
  call(router, x, context(ALL))
  allowed = st_moe.STMoE(8, num_experts=2, batch_priority=True, allow_causal=True, rngs=nnx.Rngs(0))
  call(allowed, x, context(ALL, causal=True))


@pytest.mark.parametrize('fields, message', [
    (dict(second_policy='al'), "second_policy has no choice 'al'; nearest: all"),
    (dict(balance_choices='frist'), "balance_choices has no choice 'frist'; nearest: first"),
    (dict(k=0), 'k=0 with num_experts=4')])
def test_mistakes(fields, message):
  with pytest.raises(errors.UserError, match=message):
    st_moe.STMoE(8, num_experts=4, rngs=nnx.Rngs(0), **fields)
