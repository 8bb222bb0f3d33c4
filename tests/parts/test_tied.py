"""What layers of a stack have in common: held once, lent to all, equal to layers that have it each."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import axes
from stmoe import modules
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.parts import stack
from stmoe.parts import tied
from stmoe.surgery import layout
from stmoe.surgery import upcycle

D = 8
X = jax.random.normal(jax.random.key(0), (2, 6, D))
CTX = contract.Context(**contract.numbered(jnp.ones((2, 6), bool)), step=0, tokens=jnp.float32(12))


def sparse(name='omni_router', **fields):
  """A sparse block without attention."""
  return dict(layer='moe', attention=False, executor='einsum', group_size=6, experts=dict(name='mlp', d_ff=4),
              router=dict(dict(name=name, num_experts=4), **fields))


BLOCKS = dict(m=sparse(), n=sparse(group=1), r=sparse('rmoe', width=4), s=sparse(share='nothing'),
              d=dict(layer='dense', d_ff=4, attention=False))


def build(pattern=(('mr', 2), ('dnm', 1)), blocks=BLOCKS, **fields):
  return stack.Stack(D, name='decoder', pattern=pattern, blocks=blocks, rngs=nnx.Rngs(0), **fields)


def split(made):
  """(graph, pure dict of parameters), of arrays large enough for routing to be decided."""
  graph, params = nnx.split(made, nnx.Param)
  return graph, jax.tree.map(lambda a: 5 * a, nnx.to_pure_dict(params))


def gradients(graph, params):
  """(loss, gradients) of outputs and all losses of a stack."""
  def loss(params):
    y, aux = nnx.merge(graph, params)(X, CTX)
    return jnp.sum(jnp.square(y)) + sum(value for one in aux.values() for value in one.losses.values())
  return jax.jit(jax.value_and_grad(loss))(params)


def assert_same(got, want):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, want)


def test_arrays_are_held_once_named_and_labelled():
  made = build()
  assert {name: held.uses for name, held in made.tied.items()} == dict(
      omni_router_0=3, omni_router_1=1, rmoe=2)
  assert not hasattr(made.segments[0].blocks[0].layer.router, 'w')
  assert axes.names_of(nnx.state(made, nnx.Param))['tied']['omni_router_0']['w'] == ('embed', 'unmodeled')
  assert modules.labels(made)['tied', 'omni_router_0', 'w'] == {'all', 'router'}
  assert not build((('s', 2),)).tied


PATTERN = (('mr', 2),)


def test_scanned_and_unrolled_stacks_are_equal():
  graph, params = split(build(PATTERN))
  want = gradients(graph, params)
  assert min(float(jnp.abs(g).max()) for g in jax.tree.leaves(want[1]['tied'])) > 1e-4
  loss, grads = gradients(split(build(PATTERN, scan_layers=False))[0], layout.unroll(params))
  assert_same((loss, layout.roll(grads)), want)


@pytest.mark.slow
def test_rematerialised_stacks_are_equal():
  graph, params = split(build(PATTERN))
  assert_same(gradients(split(build(PATTERN, remat='full'))[0], params), gradients(graph, params))


def test_a_gradient_is_the_sum_over_layers():
  """Of layers that have each their own matrix, of equal numbers."""
  graph, params = split(build((('m', 3),)))
  own_graph, own = split(build((('s', 3),)))
  own = layout.together(own, {key: value for key, value in params.items() if key != 'tied'})
  router = own['segments'][0]['blocks'][0]['layer']['router']
  router |= {name: jnp.stack(3 * [a]) for name, a in params['tied']['omni_router_0'].items()}
  (loss, grads), (own_loss, own_grads) = gradients(graph, params), gradients(own_graph, own)
  np.testing.assert_allclose(loss, own_loss, rtol=1e-6)
  each = own_grads['segments'][0]['blocks'][0]['layer']['router']
  assert_same(grads['tied']['omni_router_0'], jax.tree.map(lambda g: g.sum(0), each))


def test_what_is_lent_is_a_copy():
  made = build((('m', 2),), scan_layers=False)
  layer = made.segments[0][0].blocks[0].layer
  assert made.lent(layer).router.w is made.tied.omni_router_0.w and not hasattr(layer.router, 'w')
  assert tied.lent(layer, nnx.Dict()) is layer


def test_other_sizes_of_one_name_are_named():
  blocks = dict(m=sparse(), n=sparse(num_experts=2))
  with pytest.raises(UserError, match=r"omni_router.py: layers have b of 'omni_router_0' in common, which is "
                                      r'float32\[4\] in one of them and float32\[2\] in another; nearest'):
    build((('mn', 1),), blocks)


def test_upcycling_begins_them_anew_with_equal_columns_for_the_shards_of_a_copy():
  graph, dense = nnx.split(build((('d', 2),)), nnx.Param)
  sparse_params = nnx.to_pure_dict(nnx.state(build((('m', 2),), dict(m=sparse() | dict(
      experts=dict(name='mlp', d_ff=2, init_scale=1.0)))), nnx.Param))
  made = upcycle.upcycle([nnx.to_pure_dict(dense)], sparse_params, granularity=2)
  w = made['tied']['omni_router_0']['w']
  np.testing.assert_array_equal(w[:, ::2], w[:, 1::2])
  np.testing.assert_array_equal(w[:, ::2], sparse_params['tied']['omni_router_0']['w'][:, :2])


TIED = dict(tied=True)
UNIVERSAL = dict(a=sparse('sigma_moe', k=2) | dict(TIED, layer='moeut'), b=sparse('smoe') | TIED,
                 o=sparse() | TIED, d=BLOCKS['d'], m=BLOCKS['m'])


def test_whole_blocks_are_held_once_with_arrays_that_other_blocks_have_too():
  made = build((('abd', 3), ('om', 2), ('a', 2)), UNIVERSAL)
  assert {name: held.uses for name, held in made.tied.items()} == dict(
      block_a=5, block_b=3, block_o=2, omni_router_0=4)
  names = axes.names_of(nnx.state(made, nnx.Param))
  assert names['tied']['block_b']['layer']['experts']['wi'] == ('expert', 'expert_embed', 'expert_mlp')
  assert 'router' not in names['tied']['block_o']['layer']           # all of it is the group's
  labels = modules.labels(made)
  assert labels['tied', 'block_b', 'layer', 'router', 'w'] == {'all', 'router'}
  assert labels['tied', 'block_b', 'layer', 'experts', 'wi'] == {'all', 'expert'}
  assert list(made.by_name()) == [f'decoder_{i:02d}' for i in range(15)]
  assert [made.by_name()[f'decoder_{i:02d}'].experts.wi.shape for i in (1, 7)] == 2 * [(4, D, 4)]


@pytest.mark.slow
def test_tied_blocks_are_equal_scanned_unrolled_and_rematerialised_and_to_equal_blocks():
  pattern = (('ab', 2),)
  graph, params = split(build(pattern, UNIVERSAL))
  assert set(params) == {'tied', 'norm'}
  want = gradients(graph, params)
  assert min(float(jnp.abs(g).max()) for g in jax.tree.leaves(want[1])) > 1e-4
  other = build(pattern, UNIVERSAL, scan_layers=False, remat='full')
  assert_same(gradients(split(other)[0], params), want)
  # Blocks that have each their own arrays, of equal numbers: a gradient is the sum over layers.
  graph, params = split(build((('b', 2),), UNIVERSAL))
  stacked = jax.tree.map(lambda a: jnp.stack(2 * [a]), params['tied']['block_b'])
  own = dict(norm=params['norm'], segments={0: dict(blocks={0: stacked})})
  loss, grads = gradients(split(build((('b', 2),), dict(b=sparse('smoe'))))[0], own)
  summed = jax.tree.map(lambda g: g.sum(0), grads['segments'][0]['blocks'][0])
  assert_same(gradients(graph, params), (loss, dict(tied=dict(block_b=summed), norm=grads['norm'])))


def test_what_tied_blocks_rule_out_is_one_line():
  blocks = dict(m=sparse('loss_free_balancing') | TIED)
  with pytest.raises(UserError, match='blocks.m.tied: .*loss_free_balancing.py remembers its load.*nearest'):
    build((('m', 2),), blocks)
  params = nnx.to_pure_dict(nnx.state(build((('ad', 2),), UNIVERSAL), nnx.Param))
  with pytest.raises(UserError, match='blocks.a.tied: layers of this letter are one block.*nearest'):
    layout.numbered(params)
