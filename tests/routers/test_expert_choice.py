"""Expert choice on examples worked by hand, with and without the cap on experts per token."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.routers import expert_choice

ALL = np.ones((1, 4), bool)
route = jax.jit(expert_choice.expert_choice, static_argnums=2,
                static_argnames=('max_experts_per_token', 'entropy', 'sweeps', 'normalize'))


def test_experts_take_their_best_tokens(logits, edges):
  a, aux = route(logits, ALL, 2)
  # Column 0 is 0.8, 0.6, 0.7, 0.1; column 1 is 0.2, 0.4, 0.3, 0.9.
  assert edges(a) == {(0, 0, 0, 0.8), (2, 0, 1, 0.7), (3, 1, 0, 0.9), (1, 1, 1, 0.4)}
  assert aux.load.tolist() == [2, 2] and aux.losses['balance'] == 0 and aux.metrics['slot_usage'] == 1


def test_a_token_may_have_all_experts_or_none(logits, edges):
  a, aux = route(logits, ALL, 3)
  # Three each: token 0 is last for expert 1, token 3 for expert 0; tokens 1 and 2 have both.
  assert edges(a) == {(0, 0, 0, 0.8), (2, 0, 1, 0.7), (1, 0, 2, 0.6),
                      (3, 1, 0, 0.9), (1, 1, 1, 0.4), (2, 1, 2, 0.3)}
  assert aux.metrics['experts_per_token_max'] == 2
  _, aux = route(logits, ALL, 1)
  assert aux.metrics['left_behind'] == 0.5                           # tokens 1 and 2


def test_padding_leaves_its_slot_empty(logits, edges):
  a, aux = route(logits, np.array([[False, True, False, False]]), 2)
  assert edges(a) == {(1, 0, 0, 0.6), (1, 1, 0, 0.4)}
  assert aux.metrics['slot_usage'] == 0.5


def test_normalised_weights_of_a_token_sum_to_one(logits, edges):
  a, _ = route(logits, ALL, 2, normalize=True)
  assert edges(a) == {(0, 0, 0, 1), (2, 0, 1, 1), (3, 1, 0, 1), (1, 1, 1, 1)}      # each has one expert
  a, _ = route(logits, ALL, 3, normalize=True)
  # Tokens 1 and 2 have both, and their probabilities sum to 1 already.
  assert edges(a) == {(0, 0, 0, 1), (2, 0, 1, 0.7), (1, 0, 2, 0.6), (3, 1, 0, 1), (1, 1, 1, 0.4),
                      (2, 1, 2, 0.3)}
  a, _ = route(CONTESTED, np.ones((1, 3), bool), 1, normalize=True)
  # Token 0 has experts 0 and 1 at 0.5 and 0.4; token 1 has none and stays without.
  assert edges(a) == {(0, 0, 0, 0.5556), (0, 1, 0, 0.4444), (2, 2, 0, 1)}


def test_normalised_weights_forget_dropped_edges_and_have_finite_gradients():
  mask = np.array([[True, False, False]])
  total = lambda l: jnp.sum(route(l, mask, 2, normalize=True)[0].weight ** 2)
  value, grad = jax.value_and_grad(total)(CONTESTED)
  np.testing.assert_allclose(value, 0.5 ** 2 + 0.4 ** 2 + 0.1 ** 2, rtol=1e-6)      # padding adds nothing
  assert jnp.all(jnp.isfinite(grad)) and jnp.any(grad[0, 0])


def test_ties_go_to_the_first_tokens():
  a, _ = route(jnp.zeros((1, 4, 2)), ALL, 2)
  assert a.token.tolist() == [[0, 1, 0, 1]]


# Three tokens, three experts, one slot each. Experts 0 and 1 both prefer token 0. With one expert
# per token the best sum is token 1 at expert 0, token 0 at expert 1: 0.45 + 0.40 + 0.33 = 1.18,
# against 0.50 + 0.30 + 0.33 = 1.13 for the other way round.
CONTESTED = jnp.log(jnp.array([[[0.50, 0.40, 0.10], [0.45, 0.30, 0.25], [0.34, 0.33, 0.33]]]))


def test_cap_on_experts_per_token(edges):
  three = np.ones((1, 3), bool)
  a, _ = route(CONTESTED, three, 1)
  assert edges(a) == {(0, 0, 0, 0.5), (0, 1, 0, 0.4), (2, 2, 0, 0.33)}
  a, aux = route(CONTESTED, three, 1, max_experts_per_token=1, entropy=0.01)
  assert edges(a) == {(1, 0, 0, 0.45), (0, 1, 0, 0.4), (2, 2, 0, 0.33)}   # weights stay probabilities
  assert aux.metrics['experts_per_token_max'] == 1


def test_capped_plan_is_feasible():
  scores = jax.nn.softmax(2 * jax.random.normal(jax.random.key(0), (2, 16, 4)))
  plan = expert_choice.capped(scores, 8, 3, 0.1, 300)
  np.testing.assert_allclose(plan.sum(axis=2), 8, rtol=1e-3)
  assert plan.sum(axis=1).max() < 3.01 and plan.max() <= 1


def test_capped_ranking_carries_no_gradient_and_no_padding():
  mask = np.array([[True, True, False]])

  def weights(logits, **cap):
    a, _ = route(logits, mask, 1, **cap)
    return jnp.sum(jnp.where(a.expert < 3, a.weight, 0)), a
  grad, a = jax.grad(lambda l: weights(l, max_experts_per_token=2), has_aux=True)(CONTESTED)
  assert jnp.all(jnp.isfinite(grad)) and not jnp.any(grad[0, 2])
  assert set(a.token[0].tolist()) <= {0, 1}
  # The gradient is that of the chosen probabilities, which each row's softmax makes sum to 0.
  np.testing.assert_allclose(grad.sum(axis=-1), 0, atol=1e-6)


def test_impossible_cap_is_refused(call, context):
  router = expert_choice.ExpertChoice(8, num_experts=4, capacity_factor=(2.0, 2.0), min_capacity=1,
                                      max_experts_per_token=1, rngs=nnx.Rngs(0))
  with pytest.raises(errors.UserError, match='max_experts_per_token=1 .* at least 2 is needed'):
    call(router, jnp.ones((1, 4, 8)), context(ALL))


def test_capacity_never_exceeds_the_group(call, context):
  router = expert_choice.ExpertChoice(8, num_experts=2, rngs=nnx.Rngs(0))
  routed = call(router, jnp.ones((2, 2, 8)), context(np.ones((2, 2), bool)))
  assert routed.assignment.capacity == 2                             # min_capacity is 4, the group has 2
