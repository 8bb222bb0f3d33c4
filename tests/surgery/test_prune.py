"""Pruned models: tokens choose among the experts that stay, by whatever score these were chosen."""

import numpy as np
import pytest

from stmoe import errors
from stmoe.surgery import prune
from stmoe.surgery import sparse
from tests.surgery import trained

LOAD = trained.calibration(load=[1, 9, 2, 5])                        # 1 and 3 stay
LORA = dict(name='lora', d_ff=6, rank=2)


def masked(cfg, stay):
  """The model whose router never chooses other experts than `stay`."""
  router = sparse.section(cfg, 'blocks.m').to_dict()['router']
  offset = [0.0 if e in stay else -np.inf for e in range(trained.E)]
  return sparse.changed(cfg, {'blocks.m.router': dict(name='offset', offset=offset, inner=router)})


@pytest.mark.parametrize('experts, fields', [
    (trained.MLP, {}), (LORA, dict(scan_layers=False, layers=(('dm', 1),)))])
def test_a_pruned_model_is_the_old_one_that_cannot_choose_the_others(experts, fields):
  cfg = trained.config(experts, **fields)
  params = trained.params(cfg)
  made, changes = prune.operate(params, cfg, LOAD)
  assert changes == {'blocks.m.router.num_experts': 2}
  old = masked(cfg, (1, 3))
  wrapped = {(*layer.path, 'router'): dict(inner=sparse.router(layer, params),
                                           offset=np.float32(old.blocks.m.router.offset))
             for layer in sparse.found(cfg)}
  np.testing.assert_allclose(trained.logits(sparse.changed(cfg, changes), made),
                             trained.logits(old, sparse.replaced(params, wrapped)), rtol=1e-5, atol=1e-5)
  block, before = made['decoder']['layers'][1]['layer'], params['decoder']['layers'][1]['layer']
  if experts is LORA:                    # what all experts share is not cut
    np.testing.assert_array_equal(block['experts']['wi']['w'], before['experts']['wi']['w'])
    np.testing.assert_array_equal(block['experts']['wi']['a'], before['experts']['wi']['a'][np.array([1, 3])])


ONE = dict(name='switch', num_experts=4)


def test_old_gates_are_those_of_all_experts():
  router = ONE | dict(capacity_factor=(None, None))
  cfg = trained.config(router=router, layers=(('dm', 1),))
  params = trained.params(cfg)
  made, changes = prune.operate(params, cfg, LOAD, gates='old')
  among = dict(name='among', stay=[0, 1, 0, 1], inner=router)
  old, layer = sparse.changed(cfg, {'blocks.m.router': among}), sparse.found(cfg)[0]
  stays = dict(inner=sparse.router(layer, params), stay=np.int32(among['stay']))
  whole = sparse.replaced(params, {(*layer.path, 'router'): stays})
  np.testing.assert_allclose(trained.logits(sparse.changed(cfg, changes), made), trained.logits(old, whole),
                             rtol=1e-5, atol=1e-5)
  assert len(made['decoder']['layers'][1]['layer']['experts']['wi']) == 2


def test_scores():
  cfg = trained.config(wrapped=True, router=ONE, layers=(('dm', 1),))
  params = trained.params(cfg)

  def stays(calibration=trained.none, **fields):
    made, changes = prune.operate(params, cfg, calibration, **fields)
    assert list(changes) == ['blocks.m.inner.router.num_experts']
    bank, old = (p['decoder']['layers'][1]['layer']['inner']['experts']['wi'] for p in (made, params))
    return [int(np.flatnonzero([(a == b).all() for b in old])[0]) for a in bank]

  # REAP by hand: 8 / 2 tokens, 9 / 9, 6 / 2 and none at all.
  reap = trained.calibration(coactivation=np.diag([2, 9, 2, 0]), weighted_norms=[8, 9, 6, 0])
  assert stays(by='reap', calibration=reap) == [0, 2]
  bank = params['decoder']['layers'][1]['layer']['inner']['experts']
  norms = np.sqrt(sum((np.asarray(w) ** 2).reshape(4, -1).sum(1) for w in bank.values()))
  assert stays(by='magnitude', keep=0.25) == [int(norms.argmax())]
  layers = sparse.found(cfg)
  drawn = [prune.SCORES['random'](layers, params, trained.none, seed)['decoder_01'] for seed in (0, 0, 1)]
  assert (drawn[0] == drawn[1]).all() and (drawn[0] != drawn[2]).all()
  assert stays(by='random') == sorted(np.argsort(-drawn[0])[:2].tolist())


def test_virtual_experts_stay():
  cfg = trained.config()
  cfg = sparse.changed(cfg, {'blocks.m.virtual': ('zero', 'copy')})
  params = trained.params(cfg)
  made, _ = prune.operate(params, cfg, LOAD)
  w, old = (p['decoder']['layers'][1]['layer']['router']['w'] for p in (made, params))
  np.testing.assert_array_equal(w, old[:, [1, 3, 4, 5]])


BALANCED = dict(name='deepseek_v3', num_experts=4, k=2)


def test_state_of_routers_is_cut_too():
  cfg = trained.config(router=BALANCED)
  params = trained.params(cfg)
  made, _ = prune.operate(params, cfg, LOAD)
  state, old = (p['decoder']['layers'][1]['layer']['router'] for p in (made, params))
  np.testing.assert_array_equal(state['bias'], old['bias'][np.array([1, 3])])
  assert state['updates'].shape == ()


@pytest.mark.parametrize('router, keep, words', [
    (None, 0.25, ['keep=0.25 leaves 1 of 4', 'a token has 2', 'nearest: keep=0.5']),
    (dict(name='hash', num_experts=4, vocab_size=23), 0.5, ['blocks.m.router', 'nearest: merge']),
    (dict(name='remap', num_experts=3, inner=BALANCED), 0.75, ['blocks.m.router is remap', 'around another']),
    (BALANCED | dict(num_groups=2, kept_groups=1), 0.5, ['within groups', 'nearest: merge']),
    (dict(name='omni_router', num_experts=4), 0.5, ['in common with other layers', 'nearest: merge'])])
def test_what_cannot_be_pruned_is_one_line(router, keep, words):
  cfg = trained.config(router=router)
  with pytest.raises(errors.UserError) as caught:
    prune.operate(trained.params(cfg), cfg, trained.none, keep=keep)
  assert all(word in str(caught.value) for word in words) and '\n' not in str(caught.value)


def test_a_model_without_experts_is_one_line():
  cfg = trained.config(layers=(('d', 2),))
  with pytest.raises(errors.UserError, match='no sparse layer'):
    prune.operate(trained.params(cfg), cfg, trained.none)


def test_a_layer_of_several_routers_is_one_line():
  router, experts = dict(name='hash', num_experts=4, vocab_size=23), dict(name='linear', d_ff=8)
  block = dict(layer='multihash', executor='einsum', router=router, experts=experts)
  cfg = sparse.changed(trained.config(), {'blocks.m': block})
  with pytest.raises(errors.UserError, match='blocks.m.segments.0 is no layer of one router and one bank'):
    prune.operate(trained.params(cfg), cfg, trained.none)


@pytest.mark.parametrize('scan_layers', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_layer_in_a_block_that_stands_in_another_is_found(scan_layers):
  cfg = trained.config(layers=(('dm', 2),), scan_layers=scan_layers)
  around = dict(name='mixture_of_depths', share=0.5)
  cfg = sparse.changed(cfg, {'blocks.m.around': around})
  params = trained.params(cfg)
  assert [layer.path[3:] for layer in sparse.found(cfg)] == [('block', 'layer')] * 2
  same, changes = prune.operate(params, cfg, LOAD, keep=1.0)
  np.testing.assert_array_equal(trained.logits(sparse.changed(cfg, changes), same),
                                trained.logits(cfg, params))
  made, changes = prune.operate(params, cfg, LOAD)
  bank, old = (p['decoder']['layers'][3]['block']['layer']['experts']['wi'] for p in (made, params))
  np.testing.assert_array_equal(bank, old[np.array([1, 3])])
  assert np.isfinite(trained.logits(sparse.changed(cfg, changes), made)).all()


def test_experts_of_attention_stay():
  head = dict(name='switch_head', router=dict(name='sigma_moe', num_experts=2, k=1))
  cfg = sparse.changed(trained.config(), {'blocks.m.attention': head})
  paths = lambda config: [layer.path for layer in sparse.found(config)]
  assert paths(cfg) == paths(trained.config())
