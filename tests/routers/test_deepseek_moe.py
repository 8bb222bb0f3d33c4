"""DeepSeekMoE on an example worked by hand; its device budget."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.routers import deepseek_moe

# Four tokens, four experts on two devices (0, 1 and 2, 3).
PROBS = [[0.42, 0.31, 0.17, 0.1], [0.4, 0.08, 0.33, 0.19], [0.11, 0.19, 0.32, 0.38], [0.3, 0.09, 0.2, 0.41]]
ALL = np.ones((1, 4), bool)
LOGITS = jnp.log(jnp.array([PROBS]))
FIELDS = ('k', 'num_groups', 'kept_groups', 'normalize_gates', 'route_scale', 'budget')
route = jax.jit(deepseek_moe.deepseek_moe, static_argnames=FIELDS)


def chosen(a):
  """Dict (token, expert) -> weight of the live edges."""
  listed = zip(a.token[0].tolist(), a.expert[0].tolist(), a.weight[0].tolist())
  return {(t, e): round(w, 4) for t, e, w in listed if e < 4}


def test_by_hand():
  a, aux = route(LOGITS, ALL, k=2, num_groups=2)
  assert chosen(a) == {(0, 0): 0.42, (0, 1): 0.31, (1, 0): 0.4, (1, 2): 0.33, (2, 3): 0.38, (2, 2): 0.32,
                       (3, 3): 0.41, (3, 0): 0.3}
  assert aux.load.tolist() == [3, 1, 2, 2] and aux.metrics['drop_frac'] == 0
  # f = load / 2 (8 choices, 4 experts), P = the column means (1.23, 0.67, 1.02, 1.08) / 4.
  np.testing.assert_allclose(aux.losses['balance'], (1.845 + 0.335 + 1.02 + 1.08) / 4, rtol=1e-6)
  # Devices got 4 and 4 of 8 choices: f' = 1 and 1. They were reached by 3 tokens each: f'' = 3/4 both.
  np.testing.assert_allclose(aux.losses['device'], 1.0, rtol=1e-6)
  np.testing.assert_allclose(aux.losses['communication'], 0.75, rtol=1e-6)


def test_limited_to_one_device():
  a, aux = route(LOGITS, ALL, k=2, num_groups=2, kept_groups=1, normalize_gates=True, route_scale=3.0)
  # Each token stays on the device of its best expert.
  assert set(chosen(a)) == {(0, 0), (0, 1), (1, 0), (1, 1), (2, 2), (2, 3), (3, 2), (3, 3)}
  assert chosen(a)[0, 0] == round(3 * 0.42 / 0.73, 4) and chosen(a)[1, 1] == 0.5
  np.testing.assert_allclose(aux.losses['communication'], 1.0, rtol=1e-6)


def test_padding_is_not_counted():
  a, aux = route(LOGITS, np.array([[True, True, True, False]]), k=2)
  assert (3, 3) not in chosen(a) and aux.load.tolist() == [2, 1, 2, 1]
  # f = load * 4/6, P over three tokens: (0.93, 0.58, 0.82, 0.67) / 3.
  np.testing.assert_allclose(aux.losses['balance'], (1.86 + 0.58 + 1.64 + 0.67) * 4 / 18, rtol=1e-6)


def test_a_device_drops_its_least_affinities_but_none_of_exempt_tokens():
  budget = functools.partial(route, LOGITS, ALL, k=2, num_groups=2, budget=3)
  everything = {(0, 0), (0, 1), (1, 0), (1, 2), (2, 3), (2, 2), (3, 3), (3, 0)}
  a, aux = budget(exempt=np.zeros((1, 4), bool))
  # Device 0 got 0.42 0.31 0.4 0.3, device 1 0.33 0.38 0.32 0.41: each loses its last.
  assert everything - set(chosen(a)) == {(3, 0), (2, 2)}
  assert aux.metrics['drop_frac'] == 0.25 and aux.load.sum() == 8    # the load counts what was wanted
  a, _ = budget(exempt=np.array([[True, False, False, True]]))
  # Tokens 0 and 3 come first: on device 0 with 0.42 0.31 0.3, so token 1 loses its 0.4 there.
  assert everything - set(chosen(a)) == {(1, 0), (2, 2)}
  a, _ = budget(exempt=ALL)
  assert set(chosen(a)) == everything


def test_without_a_key_no_sequence_is_exempt(call, context):
  router = deepseek_moe.DeepSeekMoE(8, num_experts=4, num_groups=2, device_budget=0.5, rngs=nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(0), (1, 4, 8))
  assert call(router, x, context(ALL, train=True)).aux.metrics['drop_frac'] == 0.5


def test_budget_drops_in_training_only_and_not_in_causal_stacks(call, context):
  router = deepseek_moe.DeepSeekMoE(8, num_experts=4, num_groups=2, device_budget=0.5, rngs=nnx.Rngs(0))
  x, mask = jax.random.normal(jax.random.key(1), (2, 32, 8)), np.ones((2, 32), bool)
  train = call(router, x, context(mask, key=jax.random.key(0), train=True))
  assert 0.2 < train.aux.metrics['drop_frac'] <= 0.5
  assert call(router, x, context(mask)).aux.metrics['drop_frac'] == 0
  with pytest.raises(errors.UserError, match='device_budget lets later tokens decide'):
    call(router, x, context(mask, key=jax.random.key(0), train=True, causal=True))


def test_a_bias_is_added_to_the_logits(call, context):
  router = deepseek_moe.DeepSeekMoE(8, num_experts=4, k=1, use_bias=True, rngs=nnx.Rngs(0))
  x, mask = jax.random.normal(jax.random.key(1), (1, 3, 8)), np.ones((1, 3), bool)
  assert router.b[...].tolist() == [0, 0, 0, 0]
  router.b[...] = jnp.array([0.0, 9.0, 0.0, 0.0])
  a = call(router, x, context(mask)).assignment
  probs = jax.nn.softmax(x @ router.w[...] + router.b[...], axis=-1)
  np.testing.assert_allclose([chosen(a)[t, 1] for t in range(3)], probs[0, :, 1], atol=1e-4)


def test_unnormalised_gates_keep_the_gradient_of_their_sum():
  total = lambda fields: jax.grad(lambda l: route(l, ALL, k=2, **fields)[0].weight.sum())(LOGITS)
  assert jnp.abs(total({})).max() > 0.05
  np.testing.assert_allclose(total(dict(normalize_gates=True)), 0, atol=1e-6)


@pytest.mark.parametrize('fields, said', [
    (dict(k=5), 'router deepseek_moe: k=5 with num_experts=4'),
    (dict(num_groups=3), 'num_groups=3 does not divide'),
    (dict(k=3, num_groups=2, kept_groups=1), 'k=3 needs at least 2'),
    (dict(scope='sequenc'), "scope has no choice 'sequenc'; nearest: sequence")])
def test_bad_fields(fields, said):
  with pytest.raises(errors.UserError, match=said):
    deepseek_moe.DeepSeekMoE(8, num_experts=4, rngs=nnx.Rngs(0), **fields)
