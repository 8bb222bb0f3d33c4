"""The experts of several models in one: their order, what becomes of the rest, and a model with itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.surgery import aggregate
from stmoe.surgery import layout
from tests.surgery import test_upcycle

run = jax.jit(aggregate.aggregate, static_argnames='base')


def model(experts, seed=0, layers=(('dm', 1),), **fields):
  """(graphdef, params) of a model whose sparse layer gives each token one expert, by its raw probability."""
  router = dict(name='switch', num_experts=experts, capacity_factor=(None, None))
  blocks = dict(d=test_upcycle.dense(), m=test_upcycle.sparse(router, use_bias=True))
  return test_upcycle.build(blocks, layers=layers, seed=seed, **fields)


@pytest.fixture(scope='module')
def parents():
  return [model(2, seed) for seed in (0, 1)]


@pytest.fixture(scope='module')
def grown():
  return model(4, 2)


def layer(params):
  return params['decoder']['segments'][0]['blocks'][1]['layer']


def test_a_model_with_itself_and_twice_its_outputs_is_the_model(parents, grown):
  start, (graphdef, like) = parents[0], grown
  twice = run([start[1]] * 2, like, scale=2.0)
  assert test_upcycle.gap(start, twice, graphdef) < 2e-6
  assert test_upcycle.gap(start, run([start[1]] * 2, like), graphdef) > 1e-2


@pytest.mark.parametrize('base', ['average', 'first'])
def test_experts_and_columns_are_side_by_side_and_all_else_is_one(parents, grown, base):
  params = [params for _, params in parents]
  made = run(params, grown[1], base=base)
  for name in ('wi', 'wo', 'bi', 'bo'):
    np.testing.assert_array_equal(layer(made)['experts'][name],
                                  np.concatenate([layer(p)['experts'][name] for p in params], axis=1))
  columns = np.concatenate([layer(p)['router']['w'] for p in params], axis=-1)
  np.testing.assert_array_equal(layer(made)['router']['w'], columns)
  tables = [p['embed']['table'] for p in params]
  expected = tables[0] if base == 'first' else (tables[0] + tables[1]) / 2
  np.testing.assert_allclose(made['embed']['table'], expected, rtol=1e-6)
  kinds = aggregate.report(params[0], grown[1], 2)
  assert sorted(path.rpartition('/')[2] for path, kind in kinds.items() if kind == 'joined') == [
      'bi', 'bo', 'w', 'wi', 'wo']


def test_slots_are_joined_and_scans_do_not_matter(parents, grown):
  slots = lambda params: dict(mu=params, count=jnp.int32(9))
  sources = [layout.unroll(params) for _, params in parents]
  made = run(list(map(slots, sources)), slots(layout.unroll(grown[1])))
  assert made['count'] == 9 and made['count'].dtype == jnp.int32
  same = jax.tree.map(np.array_equal, layout.roll(made['mu']), run([p for _, p in parents], grown[1]))
  assert all(jax.tree.leaves(same))


@pytest.mark.parametrize('experts, said', [
    ((2, 3), r'layer/experts/bi is .*\(2, 16\) and \(3, 16\) in the models'),
    ((4, 4), r'experts/bi is \(4, 16\) in 2 models and \(4, 16\) in the new one; nearest: num_experts=8'),
    ((3, 3), r'experts/bi is \(3, 16\) in 2 models and \(4, 16\) in the new one; nearest: num_experts=6')])
def test_numbers_that_do_not_add_up_are_named(grown, experts, said):
  with pytest.raises(errors.UserError, match=said):
    aggregate.aggregate([model(number)[1] for number in experts], grown[1])


def test_routers_with_more_entries_than_experts_are_refused():
  """TC-MoE's are those of +1, then of -1: joined, -1 of one model would be +1 of the other."""
  def ternary(experts, seed=0):
    router = dict(name='tc_moe', num_experts=experts, k=1, num_null=0)
    blocks = dict(d=test_upcycle.dense(), m=test_upcycle.sparse(router, use_bias=True))
    return test_upcycle.build(blocks, layers=(('dm', 1),), seed=seed)[1]
  with pytest.raises(errors.UserError, match='layer/router/w has 4 entries for 2 experts, such as virtual'):
    aggregate.aggregate([ternary(2), ternary(2, 1)], ternary(4))


def test_other_layers_are_refused(parents, grown):
  with pytest.raises(errors.UserError, match='decoder/layers/0/layer/.* is not in all models'):
    aggregate.aggregate([parents[0][1], model(2, layers=(('m', 2),))[1]], grown[1])
