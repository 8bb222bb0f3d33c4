"""Upcycled parameters: where each leaf comes from, and that gates of sum 1 over all tokens change nothing."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import axes
from stmoe import errors
from stmoe import lookup
from stmoe import modules
from stmoe.core import contract
from stmoe.surgery import layout
from stmoe.surgery import upcycle
from stmoe.train import optimizers
from tests.models import tiny

D, F, E = tiny.SHAPES['d_model'], 16, 4


def dense(activation='gelu', gated=False):
  return dict(layer='dense', d_ff=F, activation=activation, gated=gated)


def sparse(router, name='mlp', d_ff=F, activation='gelu', **fields):
  return dict(layer='moe', executor='einsum', router=router,
              experts=dict(name=name, d_ff=d_ff, activation=activation, **fields))


def top_k(experts=E, k=2, normalize_gates=True):
  return dict(name='st_moe', num_experts=experts, k=k, capacity_factor=(None, None), second_policy='all',
              normalize_gates=normalize_gates)


def build(blocks, name='lm', seed=0, **fields):
  """Returns (graphdef, params) of a tiny model of random numbers."""
  graphdef, params = nnx.split(abstract(blocks, name, **fields), nnx.Param)
  rng = np.random.default_rng(seed)
  return graphdef, jax.tree.map(lambda a: np.float32(rng.normal(0, 0.4, a.shape)), nnx.to_pure_dict(params))


def abstract(blocks, name='lm', **fields):
  make = lookup.recipe('model', dict(name=name, **tiny.SHAPES) | fields)
  return nnx.eval_shape(lambda: make(blocks=blocks, rngs=nnx.Rngs(0)))


run = jax.jit(upcycle.upcycle, static_argnames=('noise', 'granularity'))


@functools.partial(jax.jit, static_argnums=0)
def forward(graphdef, params, batch, *rest):
  return nnx.merge(graphdef, params, *rest)(batch)[0]


def gap(start, params, graphdef, name='lm', rest=()):
  """Returns the largest difference of logits of real tokens to those of `start`, over the largest logit."""
  batch = tiny.batch(name, 2, 6, real=5)
  old, new = forward(*start, batch), forward(graphdef, params, batch, *rest)
  difference = jnp.where(batch['decoder_loss_weights'][..., None] > 0, new - old, 0)
  return float(jnp.abs(difference).max() / jnp.abs(old).max())


BLOCKS = dict(d=dense(), m=sparse(top_k()))
ROUTER = ('decoder', 'segments', 0, 'blocks', 1, 'layer', 'router', 'w')


@pytest.fixture(scope='module')
def start():
  return build(dict(d=dense()), layers=(('d', 2),))


@pytest.fixture(scope='module')
def fresh():
  """Parameters of the sparse model."""
  return build(BLOCKS, layers=(('dm', 1),), seed=1)[1]


def leaf(tree, *path):
  for key in path:
    tree = tree[key]
  return tree


def test_normalised_gates_of_all_tokens_change_nothing_whatever_the_router(start):
  for seed in (1, 2):
    graphdef, fresh = build(BLOCKS, layers=(('dm', 1),), seed=seed)
    params = run([start[1]], fresh)
    np.testing.assert_array_equal(leaf(params, *ROUTER), leaf(fresh, *ROUTER))
    assert gap(start, params, graphdef) < 2e-6


def test_raw_gates_change_the_function(start):
  graphdef, fresh = build(dict(d=dense(), m=sparse(top_k(normalize_gates=False))), layers=(('dm', 1),))
  assert gap(start, run([start[1]], fresh), graphdef) > 1e-2


SUMS = dict(deepseek_v3=dict(k=2, route_scale=2.5), deepseek_v4=dict(k=2), dynamic_dino=dict(k=3),
            deepseek_moe=dict(k=2, normalize_gates=True, route_scale=16.0))


@pytest.mark.parametrize('name', SUMS)
def test_gates_of_another_sum_change_nothing(name):
  """Of gated SiLU, which is not homogeneous: what the gates are more than 1 is in the last matrix alone."""
  gated = dense('silu', gated=True) | dict(use_bias=True)
  start = build(dict(d=gated), layers=(('d', 2),))
  blocks = dict(d=gated, m=sparse(dict(name=name, num_experts=E) | SUMS[name], 'glu', activation='silu',
                                  use_bias=True))
  model = abstract(blocks, layers=(('dm', 1),))
  [layer] = modules.sparse(model)
  graphdef, params, *rest = nnx.split(model, nnx.Param, ...)
  zeros = lambda tree: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), tree)
  made = functools.partial(run, [start[1]], zeros(nnx.to_pure_dict(params)))
  difference = functools.partial(gap, start, graphdef=graphdef, rest=zeros(rest))
  gates = contract.offered(layer.router, 'gates_sum')
  assert gates > 1 and difference(made(gates=gates)) < 2e-6 and difference(made()) > 1e-2


def test_expert_choice_encoder_and_top_2_decoder_change_nothing():
  gated = dense(gated=True)
  start = build(dict(d=gated), 't5', encoder=(('d', 2),), decoder=(('dd', 1),))
  choice = dict(name='expert_choice', num_experts=E, capacity_factor=(None, None), normalize=True)
  blocks = dict(d=gated, m=sparse(choice, 'glu'), n=sparse(top_k(), 'glu'))
  graphdef, fresh = build(blocks, 't5', encoder=(('dm', 1),), decoder=(('dn', 1),), seed=1)
  params = run([start[1]], fresh)
  assert gap(start, params, graphdef, 't5') < 2e-6
  assert not np.array_equal(params['encoder']['segments'][0]['blocks'][1]['layer']['experts']['wi'][0, 0],
                            params['decoder']['segments'][0]['blocks'][1]['layer']['experts']['wi'][0, 0])


def test_every_leaf_is_copied_tiled_or_fresh(start, fresh):
  kinds = upcycle.report(fresh)
  assert len(kinds) == len(jax.tree.leaves(fresh))
  assert [p for p, kind in kinds.items() if kind == 'fresh'] == ['/'.join(map(str, ROUTER))]
  assert [p.rpartition('/')[2] for p, kind in kinds.items() if kind == 'tiled'] == ['wi', 'wo']
  params, old = run([start[1]], fresh), start[1]
  assert jax.tree.structure(params) == jax.tree.structure(fresh)
  np.testing.assert_array_equal(params['embed']['table'], old['embed']['table'])
  first, second = (params['decoder']['segments'][0]['blocks'][i] for i in (0, 1))
  before = old['decoder']['segments'][0]['blocks'][0]
  for name in ('wi', 'wo'):
    np.testing.assert_array_equal(first['layer'][name][0], before['layer'][name][0])
    assert second['layer']['experts'][name].shape[1] == E
    for e in range(E):
      np.testing.assert_array_equal(second['layer']['experts'][name][0, e], before['layer'][name][1])
  np.testing.assert_array_equal(second['attention']['wq'][0], before['attention']['wq'][1])


def test_patterns_and_scans_correspond_by_the_number_of_the_block(start, fresh):
  expected = run([start[1]], fresh)
  _, unrolled = build(BLOCKS, layers=(('d', 1), ('m', 1)), scan_layers=False, seed=1)
  made = run([layout.unroll(start[1])], unrolled)
  for number, where in enumerate((made['decoder']['segments'][0][0], made['decoder']['segments'][1][0])):
    block = expected['decoder']['segments'][0]['blocks'][number]
    same = jax.tree.map(lambda a, b: np.array_equal(a[0], b), block | dict(layer={}),
                        where['blocks'][0] | dict(layer={}))
    assert all(jax.tree.leaves(same))
  np.testing.assert_array_equal(made['decoder']['segments'][1][0]['blocks'][0]['layer']['experts']['wo'],
                                expected['decoder']['segments'][0]['blocks'][1]['layer']['experts']['wo'][0])


# Hand-made trees of one stack: {'decoder': {'segments': {0: {0: {'blocks': {0: block}}}}}}.
def tree(*layers):
  blocks = {i: {'layer': layer} for i, layer in enumerate(layers)}
  return {'decoder': {'segments': {0: {0: {'blocks': blocks}}}}}


def layers(tree):
  return [block['layer'] for block in tree['decoder']['segments'][0][0]['blocks'].values()]


def mlp(seed=0, width=4, d=2):
  rng = np.random.default_rng(seed)
  return dict(wi=jnp.float32(rng.normal(size=(d, width))), wo=jnp.float32(rng.normal(size=(width, d))))


def experts(number, width=4, d=2):
  zeros = lambda *shape: jnp.zeros(shape, jnp.float32)
  return dict(router=dict(w=jnp.arange(d * number, dtype=jnp.float32).reshape(d, number)),
              experts=dict(wi=zeros(number, d, width), wo=zeros(number, width, d)))


def test_wrapped_layers_take_the_dense_layer_inside_or_outside_the_wrapper():
  one = mlp()
  for start, kept in ((one, {}), (dict(inner=one, gain=jnp.float32(3)), dict(gain=jnp.float32(0)))):
    [made] = layers(run([tree(start)], tree(dict(inner=experts(2), **kept))))
    np.testing.assert_array_equal(made['inner']['experts']['wi'][1], one['wi'])
    assert not kept or made['gain'] == 3


def test_virtual_groups_cut_hidden_units_into_consecutive_shards():
  [made] = layers(run([tree(mlp())], tree(experts(6, width=2)), granularity=2))
  wi, wo = mlp()['wi'], mlp()['wo']
  for i in range(6):                   # shard 0, shard 1, shard 0, ...
    shard = slice(2 * (i % 2), 2 * (i % 2) + 2)
    np.testing.assert_array_equal(made['experts']['wi'][i], wi[:, shard])
    np.testing.assert_array_equal(made['experts']['wo'][i], wo[shard])
  # Columns 0, 1 and 2 of the router, each twice in a row.
  assert made['router']['w'].tolist() == [[0, 0, 1, 1, 2, 2], [6, 6, 7, 7, 8, 8]]


@pytest.mark.parametrize('gated', [False, True])
def test_virtual_groups_change_nothing_with_relu(gated):
  biased = dense('relu', gated) | dict(use_bias=True)
  start = build(dict(d=biased), layers=(('d', 2),))
  bank = dict(name='glu' if gated else 'mlp', d_ff=F // 2, activation='relu', use_bias=True)
  blocks = dict(d=biased, m=sparse(top_k(2 * E, k=4), **bank))
  graphdef, fresh = build(blocks, layers=(('dm', 1),), seed=1)
  scale = upcycle.activation_scale(2 * E, 2, 4, normalized=True)
  params = run([start[1]], fresh, granularity=2, scale=scale)
  assert gap(start, params, graphdef) < 2e-6
  assert gap(start, run([start[1]], fresh, granularity=2), graphdef) > 1e-2
  if not gated:                        # a softmax over all experts: exact where it is uniform
    blocks['m'] = sparse(top_k(2 * E, k=4, normalize_gates=False), **bank)
    graphdef, _ = build(blocks, layers=(('dm', 1),))
    scale = upcycle.activation_scale(2 * E, 2, 4, normalized=False)
    params = run([start[1]], jax.tree.map(jnp.zeros_like, fresh), granularity=2, scale=scale)
    assert gap(start, params, graphdef) < 2e-6


def test_output_bias_is_not_cut_but_shared_among_the_shards():
  bias = dict(bi=jnp.arange(4.0), bo=jnp.array([5.0, 6.0]))
  target = experts(4, width=2)
  target['experts'] |= dict(bi=jnp.zeros((4, 2)), bo=jnp.zeros((4, 2)))
  [made] = layers(run([tree(mlp() | bias)], tree(target), granularity=2, scale=4.0))
  np.testing.assert_allclose(made['experts']['bi'], [[0, 2], [4, 6]] * 2, rtol=1e-6)      # x 4^(1/2)
  assert made['experts']['bo'].tolist() == [[10, 12]] * 4            # x 4 / 2


def test_several_dense_models_are_averaged_and_their_layers_become_experts():
  starts = [tree(mlp(i) | dict(), dict(wi=jnp.full((2, 4), i), wo=jnp.ones((4, 2)))) for i in range(3)]
  target = tree(experts(6), dict(wi=jnp.zeros((2, 4)), wo=jnp.zeros((4, 2))))
  mixed, other = layers(run(starts, target))
  for e in range(6):
    np.testing.assert_array_equal(mixed['experts']['wi'][e], mlp(e % 3)['wi'])
  np.testing.assert_allclose(other['wi'], 1.0, rtol=1e-6)            # (0 + 1 + 2) / 3
  with pytest.raises(errors.UserError, match='4 experts are not a multiple of 3 dense models'):
    run(starts, tree(experts(4), mlp()))


def test_noise_is_relative_and_its_own_for_every_expert():
  start, target = tree(mlp(width=400, d=30)), tree(experts(3, width=400, d=30))
  start = jax.tree.map(lambda a: 7 * a, start)
  [made] = layers(run([start], target, noise=0.1, key=jax.random.key(0)))
  added = np.asarray(made['experts']['wi'] - 7 * mlp(width=400, d=30)['wi'])
  np.testing.assert_allclose(added.std(axis=(1, 2)), 0.7, rtol=0.05)
  assert abs(np.corrcoef(added.reshape(3, -1))[np.triu_indices(3, 1)]).max() < 0.05
  assert abs(np.corrcoef(added[0].ravel(), (made['experts']['wo'][0] - 7 * mlp(width=400, d=30)['wo']).ravel()
                         )[0, 1]) < 0.05


def axes_and_shapes(blocks, **fields):
  params = nnx.state(abstract(blocks, **fields), nnx.Param)
  return axes.names_of(params), nnx.to_pure_dict(params)


@pytest.mark.parametrize('name, fields', [
    ('adamw', {}), ('sgd', {}), ('adafactor', dict(momentum=0.9, min_dim_size_to_factor=4))])
def test_optimizer_slots_are_broadcast_to_the_experts(start, fresh, name, fields):
  old = getattr(optimizers, name)(*axes_and_shapes(dict(d=dense()), layers=(('d', 2),)), **fields)
  new = getattr(optimizers, name)(*axes_and_shapes(BLOCKS, layers=(('dm', 1),)), **fields)
  rng = np.random.default_rng(0)
  number = lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype) if a.ndim else jnp.int32(9)
  slots, empty = jax.tree.map(number, old.init(start[1])), new.init(fresh)
  made = run([slots], empty)
  shapes = lambda tree: jax.tree.map(jnp.shape, tree)
  assert shapes(made) == shapes(empty) and (name == 'sgd' or made['count'] == 9)
  tree_of = {'adamw': 'mu', 'sgd': 'trace', 'adafactor': 'slots'}[name]
  before = slots[tree_of]['decoder']['segments'][0]['blocks'][0]['layer']
  after = made[tree_of]['decoder']['segments'][0]['blocks'][1]['layer']
  for mine, theirs in zip(jax.tree.leaves(after['experts']), jax.tree.leaves(before)):
    np.testing.assert_array_equal(mine[0], np.stack([theirs[1]] * E))
  assert not any(np.any(a) for a in jax.tree.leaves(after['router']))


def test_slots_of_another_form_are_refused(start, fresh):
  """Adafactor factors experts always, and dense layers only from 128 units on."""
  old = optimizers.adafactor(*axes_and_shapes(dict(d=dense()), layers=(('d', 2),)))
  new = optimizers.adafactor(*axes_and_shapes(BLOCKS, layers=(('dm', 1),)))
  with pytest.raises(errors.UserError, match='experts/wi/v_.* no counterpart'):
    run([old.init(start[1])], new.init(fresh))


@pytest.mark.parametrize('start, target, words', [
    (mlp() | dict(wg=jnp.zeros((2, 4))), experts(2), ['wg (2, 4) of the dense', 'no place', "name='glu'"]),
    (mlp(), experts(2) | dict(experts=experts(2)['experts'] | dict(wg=jnp.zeros((2, 2, 4)))),
     ['experts/wg (2, 2, 4) of the new', 'no counterpart', "name='mlp'"]),
    (mlp(), experts(2) | dict(experts=experts(2)['experts'] | dict(b=jnp.zeros((2, 4)))),
     ['experts/b', 'multiplicative_bias=False']),
    (mlp(width=8), experts(2), ['experts/wi is (2, 8)', '(2, 4) in an expert', 'd_ff=8', '--granularity 2']),
    (mlp(width=6), experts(2), ['d_ff=6']),
    (mlp() | dict(extra=jnp.zeros(3)), experts(2), ['layer/extra (3,) of the dense', 'no place']),
    (experts(2), experts(2), ['the start is not dense', 'decoder/layers/0/layer/']),
    (mlp(), mlp(width=5), ['layer/wi is (2, 4) in the dense model and (2, 5) in the new one']),
], ids=lambda value: value[0] if isinstance(value, list) else '')
def test_what_does_not_correspond_is_named(start, target, words):
  with pytest.raises(errors.UserError) as caught:
    run([tree(start)], tree(target))
  assert all(word in str(caught.value) for word in words) and '\n' not in str(caught.value)


def test_stacks_of_other_depth_are_refused():
  with pytest.raises(errors.UserError, match='decoder has 2 blocks in the dense model and 1 in the new one'):
    run([tree(mlp(), mlp())], tree(experts(2)))


@pytest.mark.parametrize('width, words', [(4, 'granularity 1'), (1, 'granularity 4')])
def test_experts_of_another_granularity_are_refused(width, words):
  with pytest.raises(errors.UserError, match=words):
    run([tree(mlp())], tree(experts(4, width=width)), granularity=2)


@pytest.mark.parametrize('bond', [None, 64])
def test_chains_of_tensors_are_the_dense_matrices(bond):
  biased = dense('relu') | dict(use_bias=True)
  start = build(dict(d=biased, m=biased), layers=(('dm', 2),))
  bank = sparse(top_k(), name='mpo', activation='relu', parts=3, bond=bond, use_bias=True)
  graphdef, fresh = build(dict(d=biased, m=bank), layers=(('dm', 2),), seed=1)
  made = run([start[1]], fresh)
  experts = made['decoder']['segments'][0]['blocks'][1]['layer']['experts']
  left = experts['wi']['left'][0]                                    # [L, E, 1, i, j, d]
  assert left.shape[1] == E and (left == left[:, :1]).all() and experts['wi']['central'].ndim == 5
  assert gap(start, made, graphdef) < 1e-4
  assert gap(start, run([start[1]], fresh, scale=2.0), graphdef) > 1e-2
  assert gap(start, run([start[1]], fresh, scale=2.0, gates=2.0), graphdef) < 1e-4
  assert set(upcycle.report(fresh).values()) == {'copied', 'decomposed', 'tiled', 'fresh'}
  with pytest.raises(errors.UserError, match='begin as one dense layer, without noise; nearest'):
    upcycle.upcycle([start[1]], fresh, noise=0.1, key=jax.random.key(0))
