"""Routers around routers: what each of them does, found by file name, and that they go around each other."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe import modules
from stmoe import router_state as state
from stmoe.core import assignment
from stmoe.core import checked
from stmoe.core import contract
from stmoe.experts import mlp
from stmoe.layers import moe
from tests.routers import generic

D, E, G, S = 8, 4, 2, 6
X = jax.random.normal(jax.random.key(0), (G, S, D))
MASK = jnp.ones((G, S), bool).at[1, 4:].set(False)
CHOSEN = jnp.asarray(np.random.default_rng(0).permuted(np.tile(np.arange(E), (G, S, 1)), axis=-1)[..., :2])
OWN = dict(ranks=dict(ranks=(1,)), route=dict(source='choices'), remap=dict(num_experts=2),
           offset=dict(offset=(0.5, 0.0, -1.0, 2.0)), d2moe=dict(widths=(4,)))
# Routers in two parts that are not what is expected below, where a rank is a token's next best score.
OTHERWISE = {'adamoe', 'dynmole', 'grin', 'mixer', 'remoe', 'smile', 'sparsemixer', 'top_p_routing',
             'union_of_experts'}
DECIDING = [name for name in lookup.available('router')
            if name not in OTHERWISE and hasattr(lookup.constructor('router', name), 'decide')]
OF_ALL_KINDS = ('st_moe', 'deepseek_v3', 'moe_plus_plus', 'x_moe')   # by logits, choice and carry
NO_DROPS = dict(capacity_factor=(None, None), second_policy='all')


@functools.cache
def inner(name='st_moe', **fields):
  router = generic.build(name, D, E, **NO_DROPS | fields)
  for i, (_, value) in enumerate(nnx.to_flat_state(nnx.state(router, nnx.Param))):
    value[...] = jax.random.normal(jax.random.key(7 + i), value.shape)
  return router


def around(router, name, **fields):
  return lookup.constructor('router', name)(D, inner=lambda d_model, rngs: router, rngs=None,
                                            **OWN.get(name, {}) | fields)


@functools.partial(jax.jit, static_argnames='train')
def _route(router, ctx, train):
  routed = checked.route(router, X, ctx.replace(train=train), modules.init_carry(router, X))
  return routed.assignment, routed.aux


def route(router, train=False, **given):
  """(assignment, aux) of a router, with its answer checked."""
  ctx = contract.Context(**contract.numbered(MASK), step=jnp.int32(0), tokens=jnp.float32(10),
                         given=dict(choices=CHOSEN) | given)
  a, aux = _route(router, ctx, train)
  assert not checked.faults(router, a, MASK)
  return a, aux


@jax.jit
def weights(a):
  """f32[G,S,E] weight of every expert for every token."""
  return a.masks()[1].sum(-1)


WRAPPERS = lookup.wrappers('router')


def test_among_some_experts_weights_are_those_among_all():
  router = inner('switch', capacity_factor=(None, None))
  probs = np.array(jax.nn.softmax(X @ router.w[...]))                # [G, S, E]
  probs[..., 2] = 0                                                  # never the largest
  want = np.where((probs == probs.max(-1, keepdims=True)) & np.asarray(MASK)[..., None], probs, 0)
  a, _ = route(around(router, 'among', stay=(1, 1, 0, 1)))
  np.testing.assert_allclose(weights(a), want, rtol=1e-5, atol=1e-6)
  with pytest.raises(errors.UserError, match=r'among: stay=\(0, 1\); wanted: 4 numbers, 1 for at least 1'):
    around(router, 'among', stay=(0, 1))


def test_they_are_found_by_name_and_are_no_ordinary_routers():
  assert {'balance', 'ranks', 'trace'} <= {*WRAPPERS}
  assert not {*WRAPPERS, 'wrappers'} & {*lookup.available('router')}
  with pytest.raises(errors.UserError, match="no router is called 'remapp'; nearest: remap"):
    lookup.module('router', 'remapp')


@pytest.mark.parametrize('name', WRAPPERS)
def test_every_wrapper_is_executed_and_around_every_other(name):
  """With slots as executors want them, gradients too; what is wrapped twice is a router, too."""
  router = around(inner(), name)
  bank = mlp.Mlp(D, num_experts=router.num_experts, d_ff=4, rngs=nnx.Rngs(0))
  ctx = contract.Context(**contract.numbered(MASK), step=jnp.int32(0), tokens=jnp.float32(10),
                         given=dict(choices=CHOSEN))

  @functools.partial(jax.jit, static_argnames='executor')
  def run(x, executor):
    def value(x):
      y = lookup.module('executor', executor).execute(x, router(x, ctx, {}).assignment, bank)
      return jnp.sum(jnp.cos(jnp.arange(y.size)).reshape(y.shape) * y)
    return jax.value_and_grad(value)(x)

  want = run(X, executor='einsum')
  for got, one in zip(jax.tree.leaves(run(X, executor='gather')), jax.tree.leaves(want)):
    np.testing.assert_allclose(got, one, rtol=1e-4, atol=1e-5)
  for other in WRAPPERS:
    ranks = dict(ranks=(0,)) if other == 'ranks' else {}
    fields = dict(num_experts=2) if other == 'remap' else {}
    twice = around(router, other, **ranks | fields)
    a = jax.eval_shape(lambda x, twice=twice: checked.route(twice, x, ctx, {}).assignment, X)
    assert a.num_experts == twice.num_experts <= E


@pytest.mark.parametrize('name', WRAPPERS)
def test_in_a_configuration_it_has_an_inner_router(name):
  fields = dict(name=name, inner=dict(name='st_moe', num_experts=E)) | OWN.get(name, {})
  layer = lookup.recipe('layer', dict(name='moe', executor='einsum', router=fields,
                                      experts=dict(name='mlp', d_ff=4)))(D, rngs=nnx.Rngs(0))
  assert layer.router.inner.w.shape == (D, E) and contract.offered(layer.router, 'k') == 2
  ctx = contract.Context(**contract.numbered(MASK), step=jnp.int32(0), tokens=jnp.float32(10),
                         given=dict(choices=CHOSEN))
  assert jax.eval_shape(lambda x: layer(x, ctx, {}), X)[0].shape == X.shape


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.slow] * (name not in OF_ALL_KINDS)) for name in DECIDING])
def test_ranks_replay_and_offset_around_every_router_in_two_parts(name):
  router = inner(name)
  plain, aux = route(router)
  live = np.asarray(weights(plain))
  number = (live > 0).sum(-1).max()
  same = dict(ranks=dict(ranks=tuple(range(number))), offset=dict(offset=[0.0] * E), trace={}, temperature={},
              remap=dict(num_experts=E, table=range(E)))
  for wrapper, fields in same.items():
    wrapped = around(router, wrapper, **fields)
    a, bux = route(wrapped)
    np.testing.assert_allclose(weights(a), live, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(bux.load, aux.load)
  # The choices of another rank, and those that are given, are other experts.
  last = np.asarray(weights(route(around(router, 'ranks', ranks=(E - 1,)))[0]))
  assert ((last > 0).sum(-1) == np.asarray(MASK)).all() and (live > 0)[last > 0].sum() == (number == E) * 10
  given = np.asarray(weights(route(around(router, 'replay'))[0]))
  expected = np.zeros((G, S, E), bool)
  np.put_along_axis(expected, np.asarray(CHOSEN), True, -1)
  np.testing.assert_array_equal(given > 0, expected & np.asarray(MASK)[..., None])
  closed = weights(route(around(router, 'offset', offset=[0.0, -jnp.inf, 0.0, 0.0]))[0])
  assert not np.asarray(closed)[..., 1].any() and np.isfinite(closed).all()


@pytest.mark.parametrize('name', ['deepseek_v4', 'moe_plus_plus', 'skywork', 'smoe_dropout'])
def test_one_rank_has_the_weight_of_all_where_gates_are_over_their_sum(name):
  router = inner(name, **dict(eval_k=2) if name == 'smoe_dropout' else {})
  both, one = (np.asarray(weights(route(made)[0])) for made in (router, around(router, 'ranks', ranks=(1,))))
  assert ((one > 0).sum(-1) == np.asarray(MASK)).all()
  np.testing.assert_allclose(one.sum(-1), both.sum(-1), rtol=1e-5)


def test_wrappers_say_how_many_experts_are_virtual():
  router = inner('moe_plus_plus', num_virtual=2)
  for wrapped in (around(router, 'temperature'), around(around(router, 'among'), 'balance')):
    assert contract.offered(wrapped, 'num_virtual') == 2


@pytest.mark.parametrize('name, fields, said', [
    ('deepseek_v4', {}, 1.5), ('dynamic_dino', dict(gates='ungated'), None)])
def test_wrappers_say_what_gates_add_up_to(name, fields, said):
  router = inner(name, **fields)
  assert contract.offered(around(router, 'temperature'), 'gates_sum') == router.gates_sum
  wrapped = around(router, 'ranks', ranks=(1,))
  assert wrapped.gates_sum == said
  sums = np.asarray(weights(route(wrapped)[0]).sum(-1))
  np.testing.assert_allclose(sums[np.asarray(MASK)], said or 1, rtol=1e-5)         # and not that of two gates


def test_temperature_divides_the_logits():
  ctx = contract.Context(**contract.numbered(MASK), step=jnp.int32(0), tokens=jnp.float32(10))
  got = around(inner(), 'temperature', temperature=4.0).logits(X, ctx)
  np.testing.assert_allclose(4 * got, inner().logits(X, ctx), rtol=1e-6)


def test_replay_of_what_was_recorded_is_the_pass_that_recorded_it():
  traced = around(inner(), 'trace')
  a, aux = route(traced)
  edges = aux.records['edges']
  assert set(edges) == {'token', 'expert', 'weight'} and edges['expert'].shape == (G, 2 * S)
  recorded = jnp.minimum(edges['expert'], E - 1).reshape(G, 2, S).swapaxes(1, 2)
  both = route(around(inner(), 'replay'), choices=recorded)[0]
  everything = route(inner())[0]
  np.testing.assert_allclose(weights(both), weights(everything), rtol=1e-6)
  ctx = contract.Context(**contract.numbered(MASK), step=jnp.int32(0), tokens=jnp.float32(10),
                         given=dict(choices=recorded))
  first = lambda router: weights(around(router, 'replay')(X, ctx, {}).assignment)[..., 0].sum()
  grad = jax.jit(jax.grad(first, allow_int=True))(inner())
  assert float(jnp.abs(grad.w[...]).max()) > 1e-3                    # through the weights, not the choice


def test_an_offset_of_every_layer_goes_around_layers_that_are_stacked():
  @nnx.split_rngs(splits=3)
  @nnx.vmap(transform_metadata={nnx.PARTITION_NAME: 'layers'})
  def make(rngs):
    return lookup.constructor('router', 'st_moe')(D, num_experts=E, rngs=rngs)
  stacked, offset = make(nnx.Rngs(0)), np.arange(E, dtype=np.float32)
  np.testing.assert_array_equal(around(stacked, 'offset', offset=offset).offset[...], [offset] * 3)
  np.testing.assert_array_equal(around(stacked, 'offset', offset=np.eye(3, E)).offset[...], np.eye(3, E))
  with pytest.raises(errors.UserError, match='router offset: 2 rows for 3 layers'):
    around(stacked, 'offset', offset=np.eye(2, E))
  with pytest.raises(errors.UserError, match='router offset: 2 rows for 1 layers'):
    around(inner(), 'offset', offset=np.eye(2, E))


def test_offset_by_hand():
  """Two experts, softmax: log 3 added to the second makes (1/2, 1/2) (1/4, 3/4); of rows, only theirs."""
  router = generic.build('switch', D, 2, **NO_DROPS)
  router.w[...] = jnp.zeros((D, 2))
  def gate(**fields):
    given = {'offset': jnp.array([[[0.0, np.log(3.0)]], [[0.0, 0.0]]])}
    ctx = contract.Context(**contract.numbered(MASK), step=jnp.int32(0), tokens=jnp.float32(10), given=given)
    return around(router, 'offset', **fields)(X, ctx.group(G, S), {}).assignment
  a = gate(offset=(0.0, np.log(3.0)))
  np.testing.assert_allclose(a.weight[MASK], 0.75, rtol=1e-6)
  assert (a.expert[MASK] == 1).all()
  np.testing.assert_allclose(gate(offset=None).weight[:, 0], [0.75, 0.5], rtol=1e-6)


def test_remap_by_hand():
  """Experts 0 and 2 become 0, 1 is pruned, 3 becomes 1: a token with both 0 and 2 is computed once."""
  edges = assignment.from_choices(jnp.array([[[0, 2], [1, 3], [3, 2]]]), jnp.array(
      [[[0.5, 0.25], [0.6, 0.4], [0.7, 0.3]]]), 4)
  routed = contract.Routed(assignment.cap(edges, 3), contract.Aux(
      losses={}, load=jnp.array([1.0, 1.0, 2.0, 2.0]), metrics={}), {})
  router = around(inner(), 'remap', num_experts=2, table=(0, -1, 0, 1))
  merged = router.answer(routed)
  np.testing.assert_allclose(weights(merged.assignment)[0], [[0.75, 0], [0, 0.4], [0.3, 0.7]])
  assert int(assignment.live(merged.assignment).sum()) == 4 and merged.aux.load.tolist() == [3.0, 2.0]
  twice = around(inner(), 'remap', num_experts=2, table=(0, -1, 0, 1), merged=False).answer(routed).assignment
  np.testing.assert_allclose(weights(twice), weights(merged.assignment))
  assert int(assignment.live(twice).sum()) == 5 and not checked.faults(router, twice, jnp.ones((1, 3), bool))


def test_remap_leaves_the_inner_routers_state_its_own_experts():
  router = around(generic.build('deepseek_v3', D, E, **NO_DROPS), 'remap', table=(0, 1, 0, 1))
  _, aux = route(router)
  assert aux.load.shape == (2,)
  before = aux.statistics['load_before'].value
  modules.commit(router, aux)
  np.testing.assert_allclose(router.inner.bias[...], 1e-3 * jnp.sign(before.mean() - before), rtol=1e-5)


def test_wrapping_a_model_copies_no_array_and_leaves_the_model_alone():
  layer = moe.Moe(D, router=lookup.recipe('router', dict(name='st_moe', num_experts=E)), executor='einsum',
                  experts=lookup.recipe('experts', dict(name='mlp', d_ff=4)), rngs=nnx.Rngs(0))
  copy = modules.wrapped(layer, functools.partial(lookup.constructor('router', 'ranks'), ranks=(3,)))
  assert type(layer.router).__name__ == 'STMoE' and copy.router.ranks == (3,)
  assert copy.router.inner.w[...] is layer.router.w[...]
  assert not jax.tree.leaves(nnx.state(copy, state.RouterState))


@pytest.mark.parametrize('name, fields, of, says', [
    ('ranks', {}, 'hash', 'router hash has no ranks of experts to route by'),
    ('replay', {}, 'expert_choice', 'router expert_choice has no choices that could be given'),
    ('offset', {}, 'thor', 'router thor has no logits to add to'),
    ('ranks', dict(ranks=(4,)), 'st_moe', r'ranks=\(4,\): ranks are different numbers from 0 to 3'),
    ('ranks', dict(ranks=()), 'st_moe', 'at least one'),
    ('remap', dict(table=(0, 1)), 'st_moe', 'wanted: 4 numbers'),
    ('remap', dict(table=(0, 1, 2, 0)), 'st_moe', 'from 0 to 1, or -1')])
def test_mistakes_are_one_line(name, fields, of, says):
  with pytest.raises(errors.UserError, match=says):
    around(inner(of), name, **fields)


def test_what_is_not_given_is_said():
  for name, fields in (('replay', dict(source='route')), ('offset', dict(offset=None))):
    with pytest.raises(errors.UserError, match='nothing is given as'):
      route(around(inner(), name, **fields))
  with pytest.raises(errors.UserError, match='1 numbers for logits of 4 experts'):
    route(around(inner(), 'offset', offset=(1.0,)))


def test_balance_of_every_scope_by_numpy():
  router = inner('smoe')
  real, k = np.asarray(MASK), 2
  probs = np.asarray(jax.nn.softmax(router.logits(X, None)))
  chosen = np.zeros_like(probs)
  np.put_along_axis(chosen, np.argsort(-probs, axis=-1)[..., :k], 1, axis=-1)
  share = lambda values, at: values[at].sum(0) / at.sum()
  loss = lambda at, f: E * np.sum(f / k * share(probs, at)) * at.sum() / 10        # there are ten real tokens
  groups = [real & (np.arange(G)[:, None] == g) for g in range(G)]
  halves = [g & (np.arange(S) // 3 == half) for g in groups for half in (0, 1)]
  ctx = contract.Context(**contract.numbered(MASK), step=jnp.int32(0), tokens=jnp.float32(10))
  ctx = ctx.replace(segments=jnp.where(MASK, 1 + jnp.arange(S) // 3, 0))
  of = lambda router: jax.jit(lambda router: router(X, ctx, {}).aux)(router)
  expected = dict(group=sum(loss(g, share(chosen, g)) for g in groups),
                  microbatch=loss(real, share(chosen, real)),
                  sequence=sum(loss(h, share(chosen, h)) for h in halves if h.any()))
  for scope, value in (expected | dict([('global', expected['microbatch'])])).items():
    np.testing.assert_allclose(of(around(router, 'balance', scope=scope)).losses['balance'], value, rtol=1e-5)
  assert len({round(float(value), 4) for value in expected.values()}) == 3
  router = around(router, 'balance')
  before = contract.total(jnp.array([20.0, 0, 0, 0]))
  router.accumulate(of(router).replace(statistics=dict(balance_counts=before)))
  f = (chosen[real].sum(0) + np.array([20, 0, 0, 0])) / 20           # 40 choices of 20 tokens
  np.testing.assert_allclose(of(router).losses['balance'], loss(real, f), rtol=1e-5)
