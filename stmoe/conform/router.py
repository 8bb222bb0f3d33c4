"""What every router must do, whatever it does."""

import functools
import inspect
import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import axes
from stmoe import errors
from stmoe import lookup
from stmoe import modules
from stmoe import router_state as state
from stmoe.conform import execution
from stmoe.conform import generic
from stmoe.core import checked
from stmoe.core import contract
from stmoe.core import metrics

D, E, G, S = 8, 4, 4, 12
REAL = np.array([12, 7, 3, 10])                                      # real tokens of each group
MASK = np.arange(S) < REAL[:, None]


def reports_and_has_gradients(name: str, **fields) -> None:
  """A step of training reports load, drops and losses, and every parameter has a gradient."""
  router = _build(name, **fields)
  grads, a, aux = _gradients(router, MASK, float(MASK.sum()), 1.0, 0.0)
  for g in map(np.asarray, _weights(grads)):
    assert np.all(np.isfinite(g)) and np.any(np.abs(g) > 1e-5), (
        f'the gradient of an array {list(g.shape)} is 0 or not finite')
  assert a.num_tokens == S and a.num_experts == E, 'the assignment has other numbers of tokens or experts'
  assert 1 <= a.capacity <= S, f'capacity {a.capacity}: wanted 1 to {S}, the tokens of a group'
  counted = E + getattr(a, 'num_virtual', 0)
  assert aux.load.shape == (counted,) and aux.load.dtype == jnp.float32, 'aux.load is no float32[experts]'
  assert np.sum(aux.load) > 0, 'aux.load is 0'
  assert 'drop_frac' in aux.metrics, 'metrics lack drop_frac; wanted: core.metrics.routing'
  faults = checked.faults(router, a, jnp.asarray(MASK))
  assert not faults, faults
  for key, value in (aux.losses | aux.metrics).items():
    assert value.shape == () and value.dtype == jnp.float32, f'{key} is no float32[]'
    assert np.isfinite(value), f'{key} is not finite'
  around = dict(generic.OF_ROUTERS, **fields)['inner']['name'] if hasattr(router, 'inner') else name
  told = set(re.findall(r'\w+', f'{generic.losses(name)} {generic.losses(around)}'))
  assert set(aux.losses) <= told, f'the line Losses: of the docstring names every loss: {set(aux.losses)}'


def padding_changes_nothing(name: str, **fields) -> None:
  """Padding reaches no expert and changes nothing of real tokens, losses and load."""
  router = _build(name, **fields)
  a, aux = _route(router)
  ids = _inputs()[1]
  b, bux = _route(router, jnp.where(MASK[..., None], _inputs()[0], 1e4), ids=jnp.where(MASK, ids, 0))
  for mask in a.masks():
    assert not np.asarray(mask)[~MASK].any(), 'padding reaches an expert; wanted: assignment.kill_padding'
  _same(a, b)
  jax.tree.map(np.testing.assert_array_equal, aux, bux)


def evaluation_draws_nothing(name: str, **fields) -> None:
  """Evaluation is the same with a key and without, unless the router says that it draws."""
  router = _build(name, **fields)
  a, aux = _route(router)
  b, bux = _route(router, key=_key())
  if contract.offered(router, 'draws_at_eval'):                      # and without a key it still runs
    assert any((p != q).any() for p, q in zip(a.masks(), b.masks()) if p.shape == q.shape), (
        'draws_at_eval, but nothing is drawn')
    b, bux = _route(router)
  _same(a, b)
  jax.tree.map(np.testing.assert_array_equal, aux, bux)


def losses_of_microbatches_add_up(name: str, **fields) -> None:
  """Losses, load and metrics are of the whole batch, in one part or in microbatches of uneven padding."""
  # Two microbatches with 19 and 13 real tokens: the divisor is the batch's count over their number.
  # What a microbatch does not hold is padding here, which changes nothing (see above).
  router, first = _build(name, **fields), np.arange(G)[:, None] < 2
  halves = [_route(router, mask=MASK & part, tokens=MASK.sum() / 2)[1] for part in (first, ~first)]
  whole = _route(router)[1]
  for key, value in whole.losses.items():
    np.testing.assert_allclose((halves[0].losses[key] + halves[1].losses[key]) / 2, value, rtol=1e-6,
                               err_msg=f'loss {key}; wanted: sums over tokens, divided by ctx.tokens')
  if not contract.offered(router, 'draws_at_eval'):
    # Whole numbers are equal so, and Soft MoE's loads are shares.
    exact = (whole.load == jnp.round(whole.load)).all()
    np.testing.assert_allclose(halves[0].load + halves[1].load, whole.load, rtol=0 if exact else 1e-6)
    merged = metrics.merge(jax.tree.map(lambda *parts: jnp.stack(parts), *halves)).metrics
    for key, value in whole.metrics.items():
      if key != 'slot_usage':                                        # here half of the groups are padding
        np.testing.assert_allclose(merged[key], value, rtol=1e-5, atol=1e-6, err_msg=(
            f'metric {key}; wanted: sums over tokens, divided by ctx.tokens, or as core.metrics.merge says'))


def bfloat16_is_routed_in_float32(name: str, **fields) -> None:
  """Activations in bfloat16 are routed as the same numbers in float32."""
  router, x = _build(name, **fields), _inputs()[0].astype(jnp.bfloat16)
  a, aux = _route(router, x)
  b, bux = _route(router, x.astype(jnp.float32))
  _same(a, b)
  jax.tree.map(np.testing.assert_array_equal, aux, bux)
  assert a.masks()[1].dtype == jnp.float32, 'weights are no float32'


def padding_alone_is_finite(name: str, **fields) -> None:
  """A batch of padding alone has losses and gradients of 0."""
  grads, _, aux = _gradients(_build(name, **fields), np.zeros_like(MASK), 1.0, 0.0, 1.0)
  assert not any(aux.losses.values()), f'losses {aux.losses}'
  assert not any(np.any(g) for g in _weights(grads)), 'a gradient is not 0'


def capacity_none_drops_nothing(name: str, **fields) -> None:
  """With capacity_factor=(None, None) nothing is dropped; routers without capacity are left out."""
  if not _has_capacity(name):
    return
  a, aux = _route(_build(name, **fields | dict(capacity_factor=(None, None))))
  assert a.capacity == S and aux.metrics['drop_frac'] == 0, (a.capacity, aux.metrics['drop_frac'])


def capacity_is_that_of_training_or_evaluation(name: str, **fields) -> None:
  """Training has the first capacity factor and evaluation the second."""
  if not _has_capacity(name):
    return
  router = _build(name, **fields)
  train = _gradients(router, MASK, float(MASK.sum()), 1.0, 0.0)[1]
  evaluation = _route(router)[0]
  assert train.capacity < evaluation.capacity <= S, (train.capacity, evaluation.capacity)


def arrays_are_named_and_weights_small(name: str, **fields) -> None:
  """Arrays have logical axes (`axes.param`), and weights begin small."""
  router = generic.router(name, 64, E, **fields)
  for kind in (nnx.Param, state.RouterState):
    for path, names in nnx.traversals.flatten_mapping(axes.names_of(nnx.state(router, kind))).items():
      assert None not in names, f'{path} has no logical axes; wanted: axes.param'
  if isinstance(getattr(router, 'w', None), nnx.Param):
    assert 0.001 < router.w[...].std() < 0.2, f'w has the standard deviation {router.w[...].std()}'


def commit_changes_the_state_alone(name: str, **fields) -> None:
  """`commit` moves the router's state and no parameter; routers without commit are left out."""
  router = generic.router(name, D, E, **fields)
  if contract.offered(router, 'commit') is None:
    return
  before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(router, nnx.Param)))
  old = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(router, state.RouterState)))
  aux = _route(router, key=_key(), train=True)[1]
  quiet = aux.replace(load=aux.load[::-1] + jnp.arange(aux.load.size),
                      statistics=jax.tree.map(jnp.zeros_like, aux.statistics))
  for one in (aux, quiet):                                           # one of them may be a fixed point
    router.commit(one)
  new = nnx.to_pure_dict(nnx.state(router, state.RouterState))
  assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, old), 'shapes of the state changed'
  assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new))), 'no state moved'
  jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(router, nnx.Param)))


def causal_in_training(name: str, **fields) -> None:
  """In training no later token changes an earlier one's experts, or the router refuses causal stacks."""
  _causal(name, True, **fields)


def causal_in_evaluation(name: str, **fields) -> None:
  """In evaluation no later token changes an earlier one's experts, or the router refuses causal stacks."""
  _causal(name, False, **fields)


def decoding_weighs_as_evaluation(name: str, **fields) -> None:
  """A token that is routed alone, as in decoding, has its experts of a group, or `undecodable` is said."""
  router = _build(name, **fields | dict(capacity_factor=(None, None)))
  if contract.offered(router, 'undecodable'):
    return
  weights = lambda alone: _routed_in_groups(router, *_inputs(), alone).masks()[1].sum(-1).reshape(-1, E)
  try:
    alone = weights(True)
  except errors.UserError:                                           # its groups are whole rows
    return
  np.testing.assert_allclose(alone, weights(False), rtol=1e-6, atol=1e-6, err_msg='a token alone has other '
                             "experts; wanted: the attribute undecodable, which says why")


def gates_add_up_as_said(name: str, **fields) -> None:
  """The gates of every token add up to `gates_sum`, where the router says that; others are left out."""
  router = _build(name, **fields)
  said = contract.offered(router, 'gates_sum')
  if said is not None:
    sums = np.asarray(_route(router)[0].masks()[1].sum(axis=(2, 3)))[MASK]
    np.testing.assert_allclose(sums, said, rtol=1e-5, err_msg='gates do not add up to gates_sum')


def every_executor_agrees(name: str, **fields) -> None:
  """Every executor computes what `einsum` does with the router's choices, values and gradients."""
  execution.agree(name, lookup.available('executor'), **fields)


def _key():
  return jax.random.key(3, impl='unsafe_rbg')                        # compiles several times faster


@functools.cache
def _inputs():
  """(x [G,S,D], ids i32[G,S]): one shape for all checks, so that few programs are compiled."""
  with jax.ensure_compile_time_eval():
    x = jax.random.normal(jax.random.key(1), (G, S, D))
    return x, jax.random.randint(jax.random.key(2), (G, S), 1, generic.VOCAB)


@generic.cached
def _build(name, **fields):
  """The router, with matrices larger than those of training, so that choices differ between tokens."""
  router = generic.router(name, D, E, **fields)
  for i, (_, value) in enumerate(nnx.to_flat_state(nnx.state(router, nnx.Param))):
    if value.ndim > 1:
      value[...] = jax.random.normal(jax.random.key(7 + i), value.shape)
  return router


def _weights(router):
  return jax.tree.leaves(nnx.state(router, nnx.Param))


@functools.partial(jax.jit, static_argnames=('train', 'causal'))
def _routed(router, x, ids, mask, tokens, key, train, causal):
  ctx = contract.Context.of(ids, mask, tokens=tokens, key=key, train=train, causal=causal,
                            given=generic.given(router, G, S))
  carry = modules.init_carry(router, x)
  if carry:                                                          # as in the second of two sparse layers
    carry = checked.route(router, x, ctx, carry).carry
  routed = checked.route(router, x, ctx, carry)
  return routed.assignment, routed.aux


@functools.partial(jax.jit, static_argnames='alone')
def _routed_in_groups(router, x, ids, alone):
  """The Assignment of evaluation for all tokens, of which each is a group by itself or none is."""
  ctx = contract.Context.of(ids, given=generic.given(router, G, S))
  if alone:
    x, ctx = x.reshape(G * S, 1, D), ctx.group(G * S, 1).replace(alone=True)
  return checked.route(router, x, ctx, modules.init_carry(router, x)).assignment


def _route(router, x=None, mask=MASK, tokens=None, key=None, train=False, causal=False, ids=None):
  """(assignment, aux) of a router, compiled."""
  x, ids = _inputs()[0] if x is None else x, _inputs()[1] if ids is None else ids
  tokens = jnp.asarray(mask.sum() if tokens is None else tokens, jnp.float32)
  return _routed(router, x, ids, mask, tokens, key, train, causal)


@jax.jit
def _gradients(router, mask, tokens, of_weights, of_losses):
  """(gradients of both parts by their factors, assignment, aux) of a router in training."""
  def weigh(router):
    a, aux = _route(router, mask=mask, tokens=tokens, key=_key(), train=True)
    combine = a.masks()[1]
    value = of_weights * jnp.sum(combine * jnp.cos(jnp.arange(combine.size).reshape(combine.shape)))
    return value + of_losses * sum(aux.losses.values()), (a, aux)
  grads, found = jax.grad(weigh, has_aux=True, allow_int=True)(router)
  return grads, *found


def _same(a, b):
  """Raises AssertionError unless the masks of two assignments are equal."""
  jax.tree.map(np.testing.assert_array_equal, a.masks(), b.masks())


def _has_capacity(name):
  return 'capacity_factor' in inspect.signature(lookup.constructor('router', name).__init__).parameters


def _causal(name, train, **fields):
  """Where no one is dropped, a later token must not change an earlier token's experts."""
  strict = _build(name, **fields | dict(allow_causal=False, capacity_factor=(None, None)))
  (x, ids), mask = _inputs(), np.ones_like(MASK)
  call = functools.partial(_route, mask=mask, key=_key(), train=train, causal=True)
  try:
    a = call(strict)[0]
  except errors.UserError as error:
    assert 'causal stack' in str(error) and 'allow_causal=True' in str(error), error
    jax.eval_shape(functools.partial(_route, mask=mask, train=train, causal=True), _build(name, **fields))
    return
  late = np.arange(S) >= S // 2
  b = call(strict, jnp.where(late[:, None], x + 1, x), ids=jnp.where(late, ids % 7 + 1, ids))[0]
  before = lambda a: a.masks()[1][:, :S // 2].sum(-1)                # [G, S/2, E] weights of earlier tokens
  np.testing.assert_array_equal(before(a), before(b), err_msg='later tokens change experts of earlier ones; '
                                'wanted: errors.UserError in a causal stack without allow_causal=True')
  assert (a.masks()[1] != b.masks()[1]).any() or not _weights(strict), 'nothing depends on the tokens'
