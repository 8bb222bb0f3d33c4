"""BAM: equal experts are one attention, its cache, its cost, and how dense models become a mixture."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import experiment
from stmoe import lookup
from stmoe.analysis import flops
from stmoe.attention import attention
from stmoe.derive import finetune
from stmoe.parts import rotary
from stmoe.parts import visible
from stmoe.surgery import sparse
from stmoe.surgery import upcycle as surgery
from tests.attention import calls
from tests.parts import test_cache
from tests.surgery import test_upcycle
from tests.train import test_step

SOFT = dict(name='st_moe', num_experts=3, k=3, normalize_gates=False, second_policy='all',
            capacity_factor=(None, None))
PARALLEL = dict(around=dict(name='parallel'))


def build(router=SOFT, shared_kv=False, **fields):
  recipe = lookup.recipe('attention', dict(name='bam', router=router, shared_kv=shared_kv))
  return recipe(12, rngs=nnx.Rngs(0), **dict(num_heads=4, head_dim=6, num_kv_heads=2) | fields)


call = jax.jit(calls.call)


@pytest.mark.parametrize('shared_kv', [False, True])
def test_equal_experts_are_one_attention_whatever_the_gates(shared_kv):
  layer, one = build(shared_kv=shared_kv), attention.Attention(12, num_heads=4, head_dim=6, num_kv_heads=2,
                                                               rngs=nnx.Rngs(1))
  layer.router.w[...] *= 50
  for name in ('wq', 'wk', 'wv', 'wo'):
    own = getattr(layer.experts, name)
    mine = getattr(layer, name) if own is None else own
    mine[...] = jnp.broadcast_to(getattr(one, name)[...], mine.shape)
  assert layer.experts.wq[...].ndim == 3 and (layer.wk is None) == (not shared_kv)
  turn = rotary.table(jnp.arange(5)[None].repeat(2, 0), 6)
  seen = visible.Visible(mask=visible.causal(jnp.ones((2, 5), jnp.int32)), turn=turn,
                         bias=jax.random.normal(jax.random.key(3), (1, 4, 5, 5)))
  x = jax.random.normal(jax.random.key(1), (2, 5, 12))
  expected = call(one, x, seen)
  np.testing.assert_allclose(call(layer, x, seen), expected, atol=3e-6)
  layer.experts.wo[...] = layer.experts.wo[...].at[0].add(1.0)       # so that the gates matter
  assert np.abs(call(layer, x, seen) - expected).max() > 1e-2


@pytest.mark.slow
def test_it_decodes_with_its_caches_before_and_beside_the_layer():
  mixed = lambda **fields: dict(attention=dict(name='bam', **fields))
  top1 = dict(SOFT, k=1)
  blocks = dict(k=test_cache.SWITCH | PARALLEL | mixed(router=SOFT), s=test_cache.DENSE | mixed(
      router=top1, shared_kv=True))
  test_cache.assert_cached_equals_whole('lm', test_cache.build('lm', None, more=blocks, num_kv_heads=2))


def test_all_experts_are_counted_also_where_a_token_has_one():
  cost = lambda arg: flops.active_per_token(experiment.load(f'bam/domains:{arg}')[0])['forward']
  assert cost('method=top1') == cost('method=kv')
  width, length, layers, more = 128, 128, 2, 2                       # attentions: three, not one
  router = 2 * width * 3 * layers
  keys, rest = 2 * width ** 2, 2 * width ** 2 + 2 * length * width
  assert cost('method=kv') - cost('method=btx') == router + layers * more * 2 * (keys + rest)
  assert cost('method=shared_kv') - cost('method=btx') == router + layers * more * 2 * rest


DENSE = test_upcycle.dense('silu', gated=True) | PARALLEL
ROUTER = dict(test_upcycle.top_k(), num_experts=2)


@pytest.fixture(scope='module')
def parents():
  """Two trained dense models of parallel blocks."""
  return [test_upcycle.build(dict(d=DENSE), layers=(('d', 2),), seed=seed) for seed in (0, 1)]


@pytest.mark.parametrize('shared_kv', [False, True])
def test_attention_layers_of_dense_models_become_experts(parents, shared_kv):
  """And `scale` is of the feed-forward experts alone."""
  block = test_upcycle.sparse(ROUTER, 'glu', activation='silu') | PARALLEL | dict(attention=dict(
      name='bam', router=dict(SOFT, num_experts=2, k=2), shared_kv=shared_kv))
  graphdef, fresh = test_upcycle.build(dict(m=block), layers=(('m', 2),), seed=2)
  params = [params for _, params in parents]
  made = surgery.upcycle(params, fresh, scale=4.0)
  of = lambda tree: tree['decoder']['segments'][0]['blocks'][0]['block']['attention']
  mixed, seeds = of(made), [of(tree) for tree in params]
  names = ('wq', 'wo') if shared_kv else ('wq', 'wk', 'wv', 'wo')
  assert sorted(mixed['experts']) == sorted(names)
  for name in names:
    np.testing.assert_array_equal(mixed['experts'][name], np.stack([seed[name] for seed in seeds], axis=1))
  if shared_kv:
    np.testing.assert_allclose(mixed['wk'], (seeds[0]['wk'] + seeds[1]['wk']) / 2, rtol=1e-6)
  np.testing.assert_array_equal(mixed['router']['w'], of(fresh)['router']['w'])
  # Two equal models, with feed-forward gates of sum 1, are their mixture.
  twice = surgery.upcycle([params[0]] * 2, fresh)
  assert test_upcycle.gap(parents[0], twice, graphdef) < 3e-6
  with pytest.raises(errors.UserError, match='2 experts are not a multiple of 3 dense models'):
    surgery.upcycle([*params, params[0]], fresh)


def test_a_branch_goes_on_with_rows_of_text():
  branch, seed = (experiment.load(f'bam/domains:phase={phase}')[0] for phase in ('branch', 'seed'))
  finetune.adopt(branch, seed)
  assert branch.data.objective == 'lm' and branch.data.length == 128 and branch.blocks == seed.blocks
  assert branch.schedule.peak == seed.schedule.peak / 2


def test_compression_is_of_the_feed_forward_experts():
  found = sparse.found(experiment.load('bam/domains')[0])
  assert [(layer.name, layer.path, layer.where) for layer in found] == [
      (f'decoder_0{i}', ('decoder', 'layers', i, 'block', 'layer'), 'blocks.m') for i in (0, 1)]


@pytest.mark.slow
def test_it_reports_alike_for_any_microbatches_and_devices(tmp_path):
  def config(**changed):
    changed |= {'losses': dict(balance=(1.0, 'sum')), 'model.layers': (('d', 1),)}
    cfg = test_step.config(tmp_path, **changed)
    with cfg.unlocked(), cfg.ignore_type():
      cfg.blocks.d.update(PARALLEL, attention=dict(name='bam', router=dict(SOFT, num_experts=4, k=4)))
    return cfg
  batches = [test_step.batch(seed=seed) for seed in range(2)]
  whole, reports = test_step.run(config(), batches)
  real = batches[0]['decoder_segment_ids'].sum()
  assert {name: load.tolist() for name, load in reports[0]['load'].items()} == {
      'decoder_00.attention': [real] * 4}
  changed = {'mesh.expert': 2, 'mesh.model': 2, 'train.microbatches': 2}
  split, others = test_step.run(config(**changed), batches, 8)
  same = ('loss/ce', 'loss/total', 'loss/aux_balance', 'grad_norm', 'load')
  for mine, theirs in zip(others, reports):
    test_step.assert_close({name: mine[name] for name in same}, {name: theirs[name] for name in same})
  test_step.assert_close(split['params'], whole['params'])


def test_mistakes(parents):
  layer = build(dict(name='soft_moe', num_experts=2))
  with pytest.raises(errors.UserError, match="soft_moe.py mixes tokens, not experts; nearest: .*'st_moe'"):
    calls.call(layer, jnp.ones((1, 4, 12)), visible.Visible(mask=jnp.ones((1, 1, 4, 4), bool)))
  with pytest.raises(errors.UserError, match='num_kv_heads 3 does not divide num_heads 4; possible: 1, 2, 4'):
    build(num_kv_heads=3)
  for name, fields, said in (('lm', dict(attention=False), 'a block of layer is not attention beside'),
                             ('t5', {}, 'a block of attention and cross and layer is not')):
    with pytest.raises(errors.UserError, match=said):
      test_cache.build(name, test_cache.DENSE | PARALLEL | fields)
