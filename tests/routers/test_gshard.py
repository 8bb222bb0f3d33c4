"""GShard's gating on an example worked by hand: policies for the second expert, both normalisations."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.core import choices
from stmoe.routers import gshard

ALL = np.ones((1, 4), bool)
route = jax.jit(gshard.gshard, static_argnums=(2, 3),
                static_argnames=('k', 'second_policy', 'threshold', 'normalize_after_drop'))
FIRST = {(0, 0, 0, 0.8), (1, 0, 1, 0.6), (3, 1, 0, 0.9)}              # token 2 finds expert 0 full
# With two experts the gates sum to 1, so that normalising before the drop changes nothing.


def test_all_first_choices_precede_second_choices(logits, edges):
  a, aux = route(logits, ALL, 2, second_policy='all')
  # One slot is left, at expert 1: the first second choice in token order, token 0's.
  assert edges(a) == FIRST | {(0, 1, 1, 0.2)}
  assert aux.load.tolist() == [4, 4]
  np.testing.assert_allclose(aux.metrics['over_capacity_1'], 1 / 4)
  np.testing.assert_allclose(aux.metrics['over_capacity_2'], 3 / 4)
  np.testing.assert_allclose(aux.metrics['drop_frac'], 4 / 8)
  np.testing.assert_allclose(aux.losses['balance'], 1.05, rtol=1e-6)  # first choices only, as Switch


def test_random_second_expert_by_its_gate(logits, edges):
  # Sent iff u < g2 / 0.5, the ratios being 0.4, 0.8, 0.6, 0.2: tokens 2 and 3. Expert 0 is full.
  uniform = jnp.array([0.5, 0.9, 0.5, 0.1]).reshape(1, 4, 1)
  a, aux = route(logits, ALL, 2, second_policy='random', threshold=0.5, uniform=uniform)
  assert edges(a) == FIRST | {(2, 1, 1, 0.3)}
  assert aux.load.tolist() == [4, 2]                                 # a choice not sent is not a load


def test_without_draws_the_likelier_outcome(logits):
  # g2 = 0.2, 0.4, 0.3, 0.1 against tau / 2 = 0.25: tokens 1 and 2 keep theirs.
  _, aux = route(logits, ALL, 4, second_policy='random', threshold=0.5)
  assert aux.load.tolist() == [3, 3]


def test_threshold_and_none(logits):
  assert route(logits, ALL, 4, second_policy='threshold', threshold=0.35)[1].load.tolist() == [3, 2]
  assert route(logits, ALL, 4, second_policy='none')[1].load.tolist() == [3, 1]


def test_normalised_after_the_drop_a_survivor_has_weight_one(logits, edges):
  a, _ = route(logits, ALL, 2, second_policy='all', normalize_after_drop=True)
  # Only token 0 keeps both experts; the lone expert of 1 and 3 gets all; token 2 has none.
  assert edges(a) == {(0, 0, 0, 0.8), (0, 1, 1, 0.2), (1, 0, 1, 1.0), (3, 1, 0, 1.0)}


def test_gates_are_normalised_over_the_chosen_two():
  logits = jnp.log(jnp.array([[[0.5, 0.3, 0.2]]]))
  a, _ = route(logits, np.ones((1, 1), bool), 1, second_policy='all')
  np.testing.assert_allclose(a.weight, [[0.625, 0.375]], rtol=1e-6)
  # A lone choice keeps its probability: normalised it would be 1 and without gradient.
  a, _ = route(logits, np.ones((1, 1), bool), 1, k=1)
  np.testing.assert_allclose(a.weight, [[0.5]], rtol=1e-6)
  a, _ = route(logits, np.ones((1, 1), bool), 1, k=3, second_policy='all')
  np.testing.assert_allclose(a.weight, [[0.5, 0.3, 0.2]], rtol=1e-6)


def test_sampled_second_expert_comes_from_the_rest_of_the_softmax():
  # Rest of (0.5, 0.3, 0.2) without expert 0: expert 1 with probability 0.6.
  logits = jnp.log(jnp.broadcast_to(jnp.array([0.5, 0.3, 0.2]), (1, 100, 3)))
  uniform = ((jnp.arange(100) + 0.5) / 100).reshape(1, 100, 1)
  a, _ = route(logits, np.ones((1, 100), bool), 100, second_policy='sampling', uniform=uniform)
  assert np.bincount(a.expert[0, 100:], minlength=3).tolist() == [0, 60, 40]


def test_choices_differ_where_the_softmax_has_saturated():
  choice = choices.choose(jnp.array([[[0.0, 1.0, 0.0]]]), 3)
  assert sorted(choice[0, 0].tolist()) == [0, 1, 2]


def test_logit_cap_bounds_the_logits(call, context):
  router = gshard.GShard(8, num_experts=4, logit_cap=2.0, rngs=nnx.Rngs(0))
  router.w[...] = 100 * jax.random.normal(jax.random.key(0), (8, 4))
  x = jax.random.normal(jax.random.key(1), (1, 4, 8))
  assert call(router, x, context(ALL)).aux.metrics['router_logit_max'] <= 2
  np.testing.assert_array_equal(gshard.cap_logits(x, 0.0), x)
  np.testing.assert_allclose(gshard.cap_logits(jnp.float32(1.0), 2.0), 2 * np.tanh(0.5), rtol=1e-6)


def test_no_gradient_is_nan_where_a_token_loses_both(logits):
  grad = jax.grad(lambda l: jnp.sum(route(l, ALL, 1, normalize_after_drop=True)[0].weight ** 2))(logits)
  assert jnp.all(jnp.isfinite(grad))


@pytest.mark.parametrize('train, fields, slots', [
    (True, dict(expert_slots=(3, None)), 3), (False, dict(expert_slots=(None, 9)), 9),
    (False, dict(expert_slots=(3, None), token_share=(None, 0.3)), 4),            # 3.3 of 11
    (False, dict(expert_slots=(None, 99)), 11), (True, dict(capacity_factor=(1.0, 2.0)), 4)])
def test_slots_of_an_expert(call, context, train, fields, slots):
  router = gshard.GShard(8, num_experts=4, second_policy='all', rngs=nnx.Rngs(0), **fields)
  ctx = context(np.ones((1, 11), bool)).replace(train=train)
  assert call(router, jnp.zeros((1, 11, 8)), ctx).assignment.capacity == slots


@pytest.mark.parametrize('fields, message', [
    (dict(second_policy='rnadom'), "second_policy has no choice 'rnadom'; nearest: random"),
    (dict(k=5), 'k=5 with num_experts=4')])
def test_mistakes(fields, message):
  with pytest.raises(errors.UserError, match=message):
    gshard.GShard(8, num_experts=4, rngs=nnx.Rngs(0), **fields)
