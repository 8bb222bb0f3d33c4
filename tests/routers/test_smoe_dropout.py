"""SMoE-Dropout: a frozen router, k that grows without recompiling, any k in evaluation."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import router_state as state
from stmoe.core.execute import einsum
from stmoe.experts import mlp
from stmoe.routers import smoe_dropout

D, E, S = 8, 6, 10
X = jax.random.normal(jax.random.key(1), (2, S, D))
MASK = np.ones((2, S), bool)
route = jax.jit(smoe_dropout.smoe_dropout, static_argnums=3)


def build(**fields):
  router = smoe_dropout.SMoEDropout(D, num_experts=E, rngs=nnx.Rngs(0), **fields)
  router.w[...] = jax.random.normal(jax.random.key(0), (D, E))
  return router


def weights(a):
  """Returns f32[G,S,E], what every expert weighs for every token."""
  return np.asarray(a.masks()[1].sum(-1))


def test_by_hand(logits, edges):
  # Softmax of two experts is the example's p; k = 1 has weight 1.
  a, aux = route(logits, np.ones((1, 4), bool), 2, 2)
  assert {(t, e, w) for t, e, _, w in edges(a)} == {
      (0, 0, 0.8), (0, 1, 0.2), (1, 0, 0.6), (1, 1, 0.4), (2, 0, 0.7), (2, 1, 0.3), (3, 1, 0.9), (3, 0, 0.1)}
  # Both are chosen by all: 2 * (4/8 * 2.2/8 + 4/8 * 1.8/8) = 1/2.
  np.testing.assert_allclose(aux.losses['balance'], 0.5, rtol=1e-6)
  a, aux = route(logits, np.ones((1, 4), bool), 1, 2)
  assert {(t, e, w) for t, e, _, w in edges(a)} == {(0, 0, 1), (1, 0, 1), (2, 0, 1), (3, 1, 1)}
  # f = (3/4, 1/4), P = (2.2/4, 1.8/4): 2 * (0.75 * 0.55 + 0.25 * 0.45).
  np.testing.assert_allclose(aux.losses['balance'], 1.05, rtol=1e-6)
  assert aux.load.tolist() == [3, 1] and aux.metrics['active_k'] == 1


@pytest.mark.slow
def test_k_is_traced_and_equal_to_a_static_one():
  logits = jax.random.normal(jax.random.key(2), (2, S, E))
  for k in range(1, E + 1):
    traced, static = route(logits, MASK, k, E), route(logits, MASK, k, k)
    np.testing.assert_allclose(weights(traced[0]), weights(static[0]), rtol=1e-6)
    np.testing.assert_allclose(weights(traced[0]).sum(-1), 1, rtol=1e-6)
    assert (weights(traced[0]) > 0).sum() == 2 * S * k
    np.testing.assert_allclose(traced[1].losses['balance'], static[1].losses['balance'], rtol=1e-6)
    np.testing.assert_array_equal(traced[1].load, static[1].load)
  assert route._cache_size() <= 2 * E + 2


def test_all_experts_are_a_dense_mixture():
  logits = jax.random.normal(jax.random.key(2), (2, S, E))
  a, _ = route(logits, MASK, E, E)
  np.testing.assert_allclose(weights(a), jax.nn.softmax(logits), rtol=1e-5)
  bank = mlp.Mlp(D, num_experts=E, d_ff=4, init_scale=1.0, rngs=nnx.Rngs(0))
  mixture = sum(jax.nn.softmax(logits)[..., e:e + 1] * (jax.nn.relu(X @ bank.wi[...][e]) @ bank.wo[...][e])
                for e in range(E))
  np.testing.assert_allclose(einsum.execute(X, a, bank), mixture, rtol=1e-4, atol=1e-5)


def test_the_step_sets_k_in_training_and_eval_k_else(context):
  router = build(k_min=2, total_steps=8)
  call = jax.jit(lambda router, step, train=False: router(
      X, context(MASK, train=train).replace(step=step), {}).aux, static_argnums=2)
  found = [int(call(router, jnp.int32(s), True).metrics['active_k']) for s in (0, 1, 2, 3, 5, 7, 8, 99)]
  # 2 + round(4 s / 8): halves go to the even number.
  assert found == [2, 2, 3, 4, 4, 6, 6, 6]
  assert call._cache_size() == 1
  assert call(router, jnp.int32(0)).metrics['active_k'] == E
  assert call(build(eval_k=3), jnp.int32(0)).metrics['active_k'] == 3


@pytest.mark.slow
def test_only_the_matrix_is_frozen(context):
  router = build(k_min=3, k_max=3)
  assert not jax.tree.leaves(nnx.state(router, nnx.Param))
  assert set(nnx.to_pure_dict(nnx.state(router, state.RouterState))) == {'w', 'b'}
  learned = build(k_min=3, k_max=3, learned=True)
  assert set(nnx.to_pure_dict(nnx.state(learned, nnx.Param))) == {'w', 'b'}
  ctx = context(MASK, train=True)

  def weigh(x):
    a = router(x, ctx, {}).assignment
    return jnp.sum(a.masks()[1].sum(-1) * jnp.arange(E))
  assert jnp.abs(jax.grad(weigh)(X)).min(axis=-1).max() > 1e-4      # through the selected logits' softmax
  # One weight is 1 whatever the logits.
  a = jax.grad(lambda x: build(k_max=1)(x, ctx, {}).assignment.weight.sum())(X)
  assert not jnp.any(a)


def test_initial_router():
  router = smoe_dropout.SMoEDropout(256, num_experts=64, rngs=nnx.Rngs(0))
  assert 0.019 < router.w[...].std() < 0.021 and not jnp.any(router.b[...])


def test_schedules_that_no_case_records():
  k = lambda schedule, step, *ends: smoe_dropout.active(schedule, step, 100, *ends)
  assert [k('linear_decrease', s, 2, 6) for s in (0, 50, 100)] == [6, 4, 2]
  assert [k('cosine_decrease', s, 2, 6) for s in (0, 50, 100)] == [6, 5, 2]      # 4 cos(45 degrees) = 2.83
  assert [k('multi_step_decrease', s, 1, 16) for s in (0, 19, 20, 99, 100)] == [16, 16, 8, 1, 1]
  assert k('multi_step_increase', 100, 1, 8) == 8                    # clipped; the reference fails at s = S
  assert k('cosine_increase', 300, 2, 6) == 6                        # past the end it stays
  assert k('constant', 0, 2, 6) == 6
  for schedule in smoe_dropout.SCHEDULES:
    table = smoe_dropout.changes(schedule, 100, 1, 16)
    looked_up = jax.vmap(lambda s, table=table: smoe_dropout.look_up(table, s))(jnp.arange(120))
    assert looked_up.tolist() == [k(schedule, s, 1, 16) for s in range(120)], schedule


@pytest.mark.parametrize('fields, message', [
    (dict(k_min=7), 'k_min=7 with num_experts=6; it is at least 1 and at most 6'),
    (dict(k_min=4, k_max=3), 'k_min=4 .* at most 3'), (dict(eval_k=9), 'eval_k=9'),
    (dict(k_max=7), 'k_max=7'), (dict(total_steps=0), 'total_steps=0'),
    (dict(schedule='linear_incrase'), "'linear_incrase'; nearest: linear_increase")])
def test_mistakes(fields, message):
  with pytest.raises(errors.UserError, match=message):
    build(**fields)
