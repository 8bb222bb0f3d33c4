"""What every router must do, whatever it does: discovered by file name."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import axes
from stmoe import errors
from stmoe import lookup
from stmoe.core import assignment
from stmoe.core import contract

D, E, G, S = 8, 4, 4, 12
REAL = np.array([12, 7, 3, 10])                                      # real tokens of each group
MASK = np.arange(S) < REAL[:, None]
NAMES = lookup.available('router')
every_router = pytest.mark.parametrize('name', NAMES)


@functools.cache
def build(name):
  # Drawn larger than the N(0, 0.02) of training, so that choices differ between tokens.
  router = lookup.constructor('router', name)(D, num_experts=E, capacity_factor=(1.0, 2.0), min_capacity=2,
                                              rngs=nnx.Rngs(0))
  router.w[...] = jax.random.normal(jax.random.key(7), (D, E))
  return router


def inputs(groups=G):
  return jax.random.normal(jax.random.key(1), (groups, S, D))


@functools.partial(jax.jit, static_argnames=('train', 'causal'))
def route(router, x, mask, tokens, key=None, train=False, causal=False):
  i = jnp.zeros(mask.shape, jnp.int32)
  ctx = contract.Context(mask=mask, ids=i, positions=i, segments=i, step=jnp.int32(0), tokens=tokens,
                         key=key, train=train, causal=causal)
  routed = router(x, ctx, {})
  return routed.assignment, routed.aux


def total(mask):
  return jnp.float32(mask.sum())


@every_router
def test_training_has_capacity_and_gradient(name):
  key, x = jax.random.key(3), inputs()

  def weigh(router):
    a, aux = route(router, x, MASK, total(MASK), key, train=True)
    return jnp.sum(jnp.where(assignment.live(a), a.weight, 0) * jnp.cos(a.token + a.expert)), (a, aux)
  grads, (a, aux) = jax.grad(weigh, has_aux=True)(build(name))
  assert jnp.all(jnp.isfinite(grads.w[...])) and jnp.all(jnp.abs(grads.w[...]).sum(axis=0) > 1e-4)
  assert a.capacity == 3 and a.num_tokens == S and a.num_experts == E
  assert aux.load.shape == (E,) and aux.load.dtype == jnp.float32
  assert set(aux.losses) >= {'balance', 'z'}
  for value in (*aux.losses.values(), *aux.metrics.values()):
    assert value.shape == () and value.dtype == jnp.float32 and jnp.isfinite(value)


@every_router
def test_padding_reaches_nothing_and_changes_nothing(name):
  x = inputs()
  other = jnp.where(MASK[..., None], x, 1e4)
  a, aux = route(build(name), x, MASK, total(MASK))
  b, bux = route(build(name), other, MASK, total(MASK))
  live = np.asarray(assignment.live(a))
  assert np.take_along_axis(MASK, np.asarray(a.token), axis=1)[live].all()
  np.testing.assert_array_equal(a.expert, b.expert)
  np.testing.assert_array_equal(jnp.where(live, a.weight, 0), jnp.where(live, b.weight, 0))
  jax.tree.map(np.testing.assert_array_equal, aux, bux)
  assert aux.load.sum() <= MASK.sum() * E


@every_router
def test_evaluation_draws_nothing(name):
  a, aux = route(build(name), inputs(), MASK, total(MASK))
  b, bux = route(build(name), inputs(), MASK, total(MASK), jax.random.key(5))
  jax.tree.map(np.testing.assert_array_equal, (a, aux), (b, bux))
  assert a.capacity == 6                                             # the second capacity factor


@every_router
def test_losses_of_microbatches_add_up(name):
  # Two microbatches with 19 and 13 real tokens: the divisor is the batch's count over their number.
  x, tokens = inputs(), total(MASK) / 2
  halves = [route(build(name), x[i:i + 2], MASK[i:i + 2], tokens)[1] for i in (0, 2)]
  whole = route(build(name), x, MASK, total(MASK))[1]
  for key, value in whole.losses.items():
    np.testing.assert_allclose((halves[0].losses[key] + halves[1].losses[key]) / 2, value, rtol=1e-6)
  np.testing.assert_array_equal(halves[0].load + halves[1].load, whole.load)


@every_router
def test_bfloat16_activations_are_routed_in_float32(name):
  x = inputs().astype(jnp.bfloat16)
  a, aux = route(build(name), x, MASK, total(MASK))
  b, bux = route(build(name), x.astype(jnp.float32), MASK, total(MASK))
  jax.tree.map(np.testing.assert_array_equal, (a, aux), (b, bux))
  assert a.weight.dtype == jnp.float32


@every_router
def test_all_padding_is_finite(name):
  nothing = np.zeros((2, S), bool)

  def loss(router):
    return sum(route(router, inputs(2), nothing, jnp.float32(1))[1].losses.values())
  value, grads = jax.value_and_grad(loss)(build(name))
  assert value == 0 and not jnp.any(grads.w[...])


@every_router
def test_capacity_none_drops_nothing(name):
  make = lookup.constructor('router', name)
  router = make(D, num_experts=E, capacity_factor=(None, None), rngs=nnx.Rngs(0))
  a, aux = route(router, inputs(), MASK, total(MASK))
  assert a.capacity == S and aux.metrics['drop_frac'] == 0 and aux.metrics['left_behind'] == 0


@every_router
def test_router_weights_are_named_and_small(name):
  router = lookup.constructor('router', name)(64, num_experts=E, rngs=nnx.Rngs(0))
  assert axes.names_of(nnx.state(router, nnx.Param))['w'] == ('embed', 'unmodeled')
  assert 0.015 < router.w[...].std() < 0.025


@every_router
def test_causal_stacks_get_a_causal_router_or_a_refusal(name):
  """Where no one is dropped, a later token must not change an earlier token's experts."""
  router, x = build(name), inputs(1)
  mask, count = np.ones((1, S), bool), jnp.float32(S)
  if name in ('expert_choice', 'expert_selection', 'switch_max'):
    with pytest.raises(errors.UserError, match='causal stack'):
      route(router, x, mask, count, causal=True)
    make = lookup.constructor('router', name)
    allowed = make(D, num_experts=E, allow_causal=True, rngs=nnx.Rngs(0))
    route(allowed, x, mask, count, causal=True)
  else:
    a = route(router, x, mask, count, causal=True)[0]
    b = route(router, x.at[:, S // 2:].set(x[:, :S // 2] + 1), mask, count, causal=True)[0]
    before = np.asarray(a.token[0, :S]) < S // 2                     # the first S edges: first choices
    np.testing.assert_array_equal(a.expert[0, :S][before], b.expert[0, :S][before])
