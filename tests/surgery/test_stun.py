"""Clustered experts: layers end with other numbers, one member of a cluster stays, or its mean."""

import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.surgery import sparse
from stmoe.surgery import stun
from tests.surgery import trained


def alike(cfg, params):
  """`params` in which experts 0, 1 and 3 of the first layer have nearly the same router column."""
  router = np.array(params['decoder']['layers'][1]['layer']['router']['w'])
  router[:, [1, 3]] = router[:, :1] + 0.01 * router[:, [1, 3]]
  first = sparse.found(cfg)[0]
  return sparse.replaced(params, {(*first.path, 'router', 'w'): jnp.asarray(router)})


@pytest.mark.parametrize('scan', [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_layer_of_experts_that_are_alike_loses_more_and_the_others_are_never_chosen(scan):
  cfg = trained.config(scan_layers=scan)
  params = alike(cfg, trained.params(cfg))
  made, changes = stun.operate(params, cfg, trained.none, keep=0.75, means=0)
  new = sparse.changed(cfg, changes)
  assert new.model['layers'] == (('dmda', 1),)
  assert new.blocks.a.experts.to_dict() == cfg.blocks.m.experts.to_dict()
  assert (new.blocks.m.router.num_experts, new.blocks.a.router.num_experts) == (2, 4)
  bank, before = (p['decoder']['layers'][1]['layer']['experts']['wi'] for p in (made, params))
  stays = [int(np.flatnonzero([(a == b).all() for b in before])[0]) for a in bank]
  assert len(bank) == 2 and stays[1] == 2 and stays[0] in (0, 1, 3)
  offset = np.full(trained.E, -np.inf, np.float32)
  offset[stays] = 0
  router = cfg.blocks.m.to_dict()['router']
  old = sparse.changed(cfg, {'blocks.m.router': dict(name='offset', offset=[0.0] * 4, inner=router)})
  wrapped = {(*layer.path, 'router'): dict(inner=sparse.router(layer, params), offset=jnp.asarray(delta))
             for layer, delta in zip(sparse.found(cfg), (offset, 0 * offset[2] * np.ones(4, np.float32)))}
  np.testing.assert_allclose(trained.logits(new, made), trained.logits(old, sparse.replaced(params, wrapped)),
                             rtol=1e-5, atol=1e-5)


def test_few_clusters_get_the_means_of_weights_and_columns():
  cfg = trained.config(layers=(('dm', 1),))
  params = alike(cfg, trained.params(cfg))
  made, changes = stun.operate(params, cfg, trained.none, keep=0.5)
  assert changes == {'blocks.m.router.num_experts': 2}
  layer, before = (p['decoder']['layers'][1]['layer'] for p in (made, params))
  for now, was in ((layer['experts']['wo'], before['experts']['wo']),
                   (layer['router']['w'].T, before['router']['w'].T)):
    np.testing.assert_allclose(now, [was[np.array([0, 1, 3])].mean(0), was[2]], rtol=1e-5, atol=1e-6)


def test_distances_by_coactivation_and_by_both():
  counts = np.array([[0, 9, 1, 1], [9, 0, 1, 1], [1, 1, 0, 3], [1, 1, 3, 0]])
  cfg = trained.config(layers=(('dm', 1),))
  params = trained.params(cfg)
  for by, weight in (('coactivation', 0.0), ('both', 9.0)):
    statistics = trained.calibration(first_two=counts)
    made, _ = stun.operate(params, cfg, statistics, keep=0.75, by=by, weight=weight, means=0)
    bank, before = (p['decoder']['layers'][1]['layer']['experts']['wi'] for p in (made, params))
    np.testing.assert_array_equal(bank[1:], before[2:])              # 0 and 1 are used together


@pytest.mark.parametrize('fields, words', [
    (dict(keep=0.25), ['keep=0.25 leaves 2 of 8', '4 stay at least', 'nearest: keep=0.5']),
    (dict(keep=0.5, most=1), ['leaves 4 of 8', 'most=1', 'nearest: keep=0.75'])])
def test_what_cannot_be_clustered_is_one_line(fields, words):
  cfg = trained.config()
  with pytest.raises(errors.UserError) as caught:
    stun.operate(trained.params(cfg), cfg, trained.none, **fields)
  assert all(word in str(caught.value) for word in words) and '\n' not in str(caught.value)


def test_a_search_that_finds_nothing_says_what_it_found():
  tie = np.ones((3, 3)) - np.eye(3)                                  # both layers merge at the same threshold
  with pytest.raises(errors.UserError, match='leaves 5 of 6 experts; nearest: keep=0.667|nearest: keep=1'):
    stun.searched([tie, tie], 5, [1, 1])
