"""Experts in the order of their devices: the model is the same, and so is what the router has of each."""

import json

import numpy as np
import pytest

from stmoe import errors
from stmoe.surgery import moetuner
from tests.surgery import trained

DEVICES = dict(decoder=[[1, 0, 1, 0], [0, 0, 1, 1]])                 # experts 1, 3, 0, 2; then as they are
BIASED = dict(name='loss_free_balancing', num_experts=trained.E, k=2)


@pytest.fixture
def placed(tmp_path):
  """Returns placed(value) -> the path of a file that holds it as JSON."""
  def write(value):
    (tmp_path / 'placement.json').write_text(json.dumps(value))
    return str(tmp_path / 'placement.json')
  return write


@pytest.mark.parametrize('fields', [{}, dict(router=BIASED), dict(wrapped=True, scan_layers=False)])
def test_a_placed_model_is_the_model(placed, fields):
  cfg = trained.config(**fields)
  params = trained.params(cfg)
  made, changes = moetuner.operate(params, cfg, trained.none, placement=placed(DEVICES))
  assert changes == {}
  np.testing.assert_allclose(trained.logits(cfg, made), trained.logits(cfg, params), rtol=1e-5, atol=1e-5)
  for at, order in ((1, [1, 3, 0, 2]), (3, [0, 1, 2, 3])):
    old, new = (layer.get('inner', layer) for layer in (tree['decoder']['layers'][at]['layer']
                                                        for tree in (params, made)))
    np.testing.assert_array_equal(new['experts']['wi'], np.asarray(old['experts']['wi'])[order])
    for name, array in old['router'].items():                        # the bias of balancing, too
      np.testing.assert_array_equal(new['router'][name], np.asarray(array)[..., order])


def test_without_a_placement_nothing_moves():
  cfg = trained.config()
  params = trained.params(cfg)
  made, changes = moetuner.operate(params, cfg, trained.none)
  assert changes == {} and trained.logits(cfg, made).tolist() == trained.logits(cfg, params).tolist()


@pytest.mark.parametrize('value', [
    dict(encoder=DEVICES['decoder']), dict(decoder=DEVICES['decoder'][:1]), dict(decoder=[[0, 0, 0, 1]] * 2),
    dict(decoder=[[0, 1]] * 2), dict(decoder=[[0, 1, 0, '1']] * 2), dict(decoder=3)])
def test_another_file_is_refused(placed, value):
  cfg = trained.config()
  with pytest.raises(errors.UserError, match='has no devices of the 4 experts of decoder_01, with equally'):
    moetuner.operate(trained.params(cfg), cfg, trained.none, placement=placed(value))


def test_fewer_experts_and_routers_of_groups_are_refused(placed):
  cfg = trained.config()
  with pytest.raises(errors.UserError, match='keep=0.5: experts get other numbers, and none goes; nearest: '):
    moetuner.operate(trained.params(cfg), cfg, trained.none, keep=0.5)
  grouped = dict(name='deepseek_v3', num_experts=trained.E, k=1, num_groups=2, kept_groups=1)
  cfg = trained.config(router=grouped)
  with pytest.raises(errors.UserError, match='chooses within groups'):
    moetuner.operate(trained.params(cfg), cfg, trained.none, placement=placed(DEVICES))
