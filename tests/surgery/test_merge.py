"""Merged models: copies become one without any change, groups and their means are M-SMoE's."""

import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.surgery import merge
from stmoe.surgery import sparse
from tests.surgery import trained

GLU = dict(name='glu', d_ff=6)
# Experts 0 and 3, 1 and 2 have logits alike; 3 and 1 are the most used.
ALIKE = np.array([[4, 0, 0, 4], [0, 4, 4, 0], [0, 4, 4, 0], [4, 0, 0, 4]])
STATISTICS = trained.calibration(load=[1, 4, 2, 5], logit_products=ALIKE)


def twins(params, permuted):
  """`params` in which expert 3 is 0 and expert 2 is 1, hidden units in another order where `permuted`."""
  order = np.random.default_rng(0).permutation(6) if permuted else np.arange(6)
  made = {}
  for block in (1, 3):
    path = ('decoder', 'layers', block, 'layer', 'experts')
    for name, array in params['decoder']['layers'][block]['layer']['experts'].items():
      axis = {'wi': 1, 'wg': 1, 'bi': 0, 'wo': 0}.get(name)
      moved = array if axis is None else jnp.take(array, order, axis + 1)
      made[(*path, name)] = array.at[3].set(moved[0]).at[2].set(moved[1])
  return sparse.replaced(params, made)


@pytest.mark.parametrize('experts, permuted', [(trained.MLP, True), (GLU, False)])
def test_copies_are_merged_without_a_change(experts, permuted):
  cfg = trained.config(experts, scan_layers=permuted)
  params = twins(trained.params(cfg), permuted)
  made, changes = merge.operate(params, cfg, STATISTICS, align='weights' if permuted else 'none')
  assert changes['blocks.m.router']['inner'] == cfg.blocks.m.router.to_dict()
  layer = made['decoder']['layers'][1]['layer']
  assert layer['router']['table'].tolist() == [1, 0, 0, 1] and len(layer['experts']['wi']) == 2
  before = trained.logits(cfg, params)
  np.testing.assert_allclose(trained.logits(sparse.changed(cfg, changes), made), before, rtol=1e-4, atol=1e-4)
  if permuted:
    other, _ = merge.operate(params, cfg, STATISTICS, align='none')
    assert np.abs(trained.logits(sparse.changed(cfg, changes), other) - before).max() > 1e-2


@pytest.mark.parametrize('by', ['weights', 'router'])
def test_experts_are_alike_by_their_weights_or_their_columns_of_the_router(by):
  cfg = trained.config()
  params = twins(trained.params(cfg), permuted=True)                 # 3 is 0 and 2 is 1
  for block in (1, 3):
    router = params['decoder']['layers'][block]['layer']['router']
    router['w'] = router['w'].at[:, 3].set(2 * router['w'][:, 0]).at[:, 2].set(router['w'][:, 1])
  statistics = trained.calibration(load=[1, 4, 2, 5])                # no logits are asked for
  made, _ = merge.operate(params, cfg, statistics, by=by)
  assert made['decoder']['layers'][1]['layer']['router']['table'].tolist() == [1, 0, 0, 1]


def test_members_weigh_by_usage_alike_or_the_head_alone():
  cfg = trained.config()
  params = trained.params(cfg)
  wi = params['decoder']['layers'][1]['layer']['experts']['wi']

  def first(**fields):
    made, _ = merge.operate(params, cfg, STATISTICS, align='none', **fields)
    return made['decoder']['layers'][1]['layer']['experts']['wi']
  wanted = dict(usage=(4 * wi[1] + 2 * wi[2]) / 6, uniform=(wi[1] + wi[2]) / 2, head=wi[1])
  for weights, value in wanted.items():
    np.testing.assert_allclose(first(weights=weights)[0], value, rtol=1e-5, atol=1e-6)
  assert first(keep=0.25).shape[0] == 1 and first(capacity=2).shape[0] == 2


def test_of_all_layers_together_a_skewed_one_keeps_few():
  cfg = trained.config()
  params = trained.params(cfg)
  loads = dict(decoder_01=[70, 10, 10, 10], decoder_03=[30, 30, 25, 15])

  def calibration(*names):
    return {layer: dict(load=np.float64(load), logit_products=np.eye(4)) for layer, load in loads.items()}
  made, changes = merge.operate(params, cfg, calibration, allocation='global')
  assert changes['blocks.m.router']['num_experts'] == 3
  skewed, even = (made['decoder']['layers'][block]['layer'] for block in (1, 3))
  assert set(skewed['router']['table'].tolist()) == {0} and set(even['router']['table'].tolist()) == {0, 1, 2}
  np.testing.assert_array_equal(skewed['experts']['wi'][1], skewed['experts']['wi'][0])      # never used


def test_a_layer_may_stay_whole():
  cfg = trained.config()
  params = trained.params(cfg)
  made, changes = merge.operate(params, cfg, STATISTICS, whole='*_01', align='none')
  new = sparse.changed(cfg, changes)
  assert [layer.num_experts for layer in sparse.found(new)] == [4, 2]
  assert new.model['layers'] == (('dmda', 1),)
  first, before = (p['decoder']['layers'][1]['layer'] for p in (made, params))
  assert first['router']['table'].tolist() == [0, 1, 2, 3]
  np.testing.assert_array_equal(first['experts']['wi'], before['experts']['wi'])
  assert np.isfinite(trained.logits(new, made)).all()


def test_a_router_that_is_merged_is_merged_again_and_shared_arrays_stay():
  cfg = trained.config(dict(name='lora', d_ff=6, rank=2), layers=(('dm', 1),))
  params = trained.params(cfg)
  once, changes = merge.operate(params, cfg, STATISTICS, keep=0.75)
  cfg = sparse.changed(cfg, changes)
  statistics = trained.calibration(load=[1, 4, 5], logit_products=np.eye(3))
  twice, changes = merge.operate(once, cfg, statistics, keep=0.3)
  layer, before = (p['decoder']['layers'][1]['layer'] for p in (twice, params))
  assert layer['router']['table'].tolist() == [0, 0, 0] and len(layer['router']['inner']['table']) == 4
  np.testing.assert_array_equal(layer['experts']['wi']['w'], before['experts']['wi']['w'])
  assert np.isfinite(trained.logits(sparse.changed(cfg, changes), twice)).all()


@pytest.mark.parametrize('fields, words', [
    (dict(capacity=1), ['capacity=1: 2 groups do not hold 4 experts', 'nearest: capacity=2'])])
def test_groups_that_cannot_be_are_one_line(fields, words):
  cfg = trained.config()
  statistics = trained.calibration(load=[1, 1, 1, 1], logit_products=np.eye(4))
  with pytest.raises(errors.UserError) as caught:
    merge.operate(trained.params(cfg), cfg, statistics, **fields)
  assert all(word in str(caught.value) for word in words) and '\n' not in str(caught.value)
