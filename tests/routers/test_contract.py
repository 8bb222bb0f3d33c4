"""What every router must do, whatever it does: discovered by file name."""

import functools
import inspect
import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import axes
from stmoe import errors
from stmoe import lookup
from stmoe import modules
from stmoe import router_state as state
from stmoe.core import checked
from stmoe.core import contract
from tests.routers import generic

D, E, G, S = 8, 4, 4, 12
REAL = np.array([12, 7, 3, 10])                                      # real tokens of each group
MASK = np.arange(S) < REAL[:, None]
KEY = jax.random.key(3, impl='unsafe_rbg')                              # compiles several times faster
NAMES = lookup.available('router')
every_router = pytest.mark.parametrize('name', NAMES)


@functools.cache
def build(name, **changed):
  # Matrices are drawn larger than those of training, so that choices differ between tokens.
  router = generic.build(name, D, E, **changed)
  for i, (_, value) in enumerate(nnx.to_flat_state(nnx.state(router, nnx.Param))):
    if value.ndim > 1:
      value[...] = jax.random.normal(jax.random.key(7 + i), value.shape)
  return router


def weights(router):
  return jax.tree.leaves(nnx.state(router, nnx.Param))


# One shape for all tests: every router is compiled once for each of the few kinds of calls.
X = jax.random.normal(jax.random.key(1), (G, S, D))
IDS = jax.random.randint(jax.random.key(2), (G, S), 1, generic.VOCAB)


@functools.partial(jax.jit, static_argnames=('train', 'causal'))
def _route(router, x, ids, mask, tokens, key, train, causal):
  positions = jnp.broadcast_to(jnp.arange(mask.shape[1]), mask.shape)
  ctx = contract.Context(mask=mask, ids=ids, positions=positions, segments=mask.astype(jnp.int32),
                         step=jnp.int32(0), tokens=tokens, key=key, train=train, causal=causal)
  carry = modules.init_carry(router, x)
  if carry:                                                          # as in the second of two sparse layers
    carry = checked.route(router, x, ctx, carry).carry
  routed = checked.route(router, x, ctx, carry)
  return routed.assignment, routed.aux


def route(router, x=X, mask=MASK, tokens=None, key=None, train=False, causal=False, ids=IDS):
  """(assignment, aux) of a router, compiled."""
  tokens = jnp.asarray(mask.sum() if tokens is None else tokens, jnp.float32)
  return _route(router, x, ids, mask, tokens, key, train, causal)


@jax.jit
def gradients(router, mask, tokens, of_weights, of_losses):
  """(gradients of both parts by their factors, assignment, aux) of a router in training."""
  def weigh(router):
    a, aux = route(router, mask=mask, tokens=tokens, key=KEY, train=True)
    combine = a.masks()[1]
    value = of_weights * jnp.sum(combine * jnp.cos(jnp.arange(combine.size).reshape(combine.shape)))
    return value + of_losses * sum(aux.losses.values()), (a, aux)
  grads, found = jax.grad(weigh, has_aux=True, allow_int=True)(router)
  return grads, *found


def assert_same(a, b):
  """Asserts equal masks of two assignments."""
  jax.tree.map(np.testing.assert_array_equal, a.masks(), b.masks())


@every_router
def test_training_reports_and_has_gradient(name):
  grads, a, aux = gradients(build(name), MASK, float(MASK.sum()), 1.0, 0.0)
  for g in weights(grads):
    assert jnp.all(jnp.isfinite(g)) and jnp.any(jnp.abs(g) > 1e-5)
  assert a.num_tokens == S and a.num_experts == E and 1 <= a.capacity <= S
  counted = E + getattr(a, 'num_virtual', 0)
  assert aux.load.shape == (counted,) and aux.load.dtype == jnp.float32 and aux.load.sum() > 0
  assert 'drop_frac' in aux.metrics
  assert not checked.faults(build(name), a, MASK)
  for value in (*aux.losses.values(), *aux.metrics.values()):
    assert value.shape == () and value.dtype == jnp.float32 and jnp.isfinite(value)
  told = set(re.findall(r'\w+', generic.losses(name)))
  assert set(aux.losses) <= told, 'the line Losses: of the docstring names every loss'


@every_router
def test_padding_reaches_nothing_and_changes_nothing(name):
  a, aux = route(build(name))
  b, bux = route(build(name), jnp.where(MASK[..., None], X, 1e4), ids=jnp.where(MASK, IDS, 0))
  for mask in a.masks():
    assert not np.asarray(mask)[~MASK].any()
  assert_same(a, b)
  jax.tree.map(np.testing.assert_array_equal, aux, bux)


@every_router
def test_evaluation_draws_nothing(name):
  a, aux = route(build(name))
  b, bux = route(build(name), key=KEY)
  if contract.offered(build(name), 'draws_at_eval'):                   # and without a key it still runs
    assert any((p != q).any() for p, q in zip(a.masks(), b.masks()) if p.shape == q.shape)
    b, bux = route(build(name))
  assert_same(a, b)
  jax.tree.map(np.testing.assert_array_equal, aux, bux)


@every_router
def test_losses_of_microbatches_add_up(name):
  # Two microbatches with 19 and 13 real tokens: the divisor is the batch's count over their number.
  # What a microbatch does not hold is padding here, which changes nothing (see above).
  router, first = build(name), np.arange(G)[:, None] < 2
  halves = [route(router, mask=MASK & part, tokens=MASK.sum() / 2)[1] for part in (first, ~first)]
  whole = route(router)[1]
  for key, value in whole.losses.items():
    np.testing.assert_allclose((halves[0].losses[key] + halves[1].losses[key]) / 2, value, rtol=1e-6)
  if not contract.offered(router, 'draws_at_eval'):
    # Whole numbers are equal so, and Soft MoE's loads are shares.
    exact = (whole.load == jnp.round(whole.load)).all()
    np.testing.assert_allclose(halves[0].load + halves[1].load, whole.load, rtol=0 if exact else 1e-6)


@pytest.mark.slow
@every_router
def test_bfloat16_activations_are_routed_in_float32(name):
  x = X.astype(jnp.bfloat16)
  a, aux = route(build(name), x)
  b, bux = route(build(name), x.astype(jnp.float32))
  assert_same(a, b)
  jax.tree.map(np.testing.assert_array_equal, aux, bux)
  assert a.masks()[1].dtype == jnp.float32


@every_router
def test_all_padding_is_finite(name):
  grads, _, aux = gradients(build(name), np.zeros_like(MASK), 1.0, 0.0, 1.0)
  assert not any(aux.losses.values()) and not any(jnp.any(g) for g in weights(grads))


def needs_capacity(name):
  """Skips routers without capacity; asked in the test, so that a file that is broken breaks its own tests."""
  if 'capacity_factor' not in inspect.signature(lookup.constructor('router', name).__init__).parameters:
    pytest.skip('has no capacity')


@every_router
def test_capacity_none_drops_nothing(name):
  needs_capacity(name)
  a, aux = route(build(name, capacity_factor=(None, None)))
  assert a.capacity == S and aux.metrics['drop_frac'] == 0


@every_router
def test_capacity_is_that_of_training_or_evaluation(name):
  needs_capacity(name)
  train = gradients(build(name), MASK, float(MASK.sum()), 1.0, 0.0)[1]
  evaluation = route(build(name))[0]
  assert train.capacity < evaluation.capacity <= S


@every_router
def test_router_arrays_are_named_and_weights_small(name):
  router = generic.build(name, 64, E)
  for kind in (nnx.Param, state.RouterState):
    for path, names in nnx.traversals.flatten_mapping(axes.names_of(nnx.state(router, kind))).items():
      assert None not in names, path
  if isinstance(getattr(router, 'w', None), nnx.Param):
    assert 0.001 < router.w[...].std() < 0.2


@every_router
def test_commit_changes_the_state_alone(name):
  router = generic.build(name, D, E)
  if contract.offered(router, 'commit') is None:
    return
  before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(router, nnx.Param)))
  old = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(router, state.RouterState)))
  aux = route(router, key=KEY, train=True)[1]
  quiet = aux.replace(load=aux.load[::-1] + jnp.arange(aux.load.size),
                      statistics=jax.tree.map(jnp.zeros_like, aux.statistics))
  for one in (aux, quiet):                                           # one of them may be a fixed point
    router.commit(one)
  new = nnx.to_pure_dict(nnx.state(router, state.RouterState))
  assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, old)
  assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new)))
  jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(router, nnx.Param)))


@every_router
@pytest.mark.parametrize('train', [True, False])
def test_causal_stacks_get_a_causal_router_or_a_refusal(name, train):
  """Where no one is dropped, a later token must not change an earlier token's experts."""
  strict, mask = build(name, allow_causal=False, capacity_factor=(None, None)), np.ones_like(MASK)
  call = functools.partial(route, mask=mask, key=KEY, train=train, causal=True)
  try:
    a = call(strict)[0]
  except errors.UserError as error:
    assert 'causal stack' in str(error) and 'allow_causal=True' in str(error)
    jax.eval_shape(functools.partial(route, mask=mask, train=train, causal=True), build(name))
    return
  late = np.arange(S) >= S // 2
  b = call(strict, jnp.where(late[:, None], X + 1, X), ids=jnp.where(late, IDS % 7 + 1, IDS))[0]
  before = lambda a: a.masks()[1][:, :S // 2].sum(-1)                # [G, S/2, E] weights of earlier tokens
  np.testing.assert_array_equal(before(a), before(b))
  assert (a.masks()[1] != b.masks()[1]).any() or not weights(strict)


def test_those_that_leak_refuse():
  """Each of these lets later tokens decide; the others were compared above."""
  leaking = {'expert_choice', 'expert_selection', 'switch_max'}
  for name in leaking:
    with pytest.raises(errors.UserError, match='causal stack'):
      jax.eval_shape(functools.partial(route, causal=True), build(name, allow_causal=False))
