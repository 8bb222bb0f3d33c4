"""The compared language models cost the same per token, up to the router's own product."""

import pytest

from stmoe import experiment
from stmoe.analysis import flops
from stmoe.configs.lm import methods

CAUSAL = [name for name, row in methods.METHODS.items() if row[2] == 'lm']


def load(name):
  return experiment.load(name)[0]


def sparse_layers(cfg, stack):
  return sum(letters.count('m') * repeats for letters, repeats in cfg.model[stack])


@pytest.mark.parametrize('experiment_name', ['lm/quickstart', 'lm/stdlib_small', 'lm/stdlib'])
@pytest.mark.parametrize('method', CAUSAL)
def test_equal_active_flops(experiment_name, method):
  cfg = load(f'{experiment_name}:method={method}')
  cost = flops.active_per_token(cfg)['forward']
  dense = flops.active_per_token(load(f'{experiment_name}:method=dense'))['forward']
  experts = cfg.blocks.m.router.num_experts if 'router' in cfg.blocks.m else 0
  assert cost - dense == 2 * cfg.model.d_model * experts * sparse_layers(cfg, 'layers')
  assert cost <= 1.005 * dense


def test_expert_choice_costs_its_dense_twin_in_the_encoder():
  cfg, twin = load('lm/stdlib:method=expert_choice'), load('lm/stdlib:method=dense,backbone=t5')
  router = 2 * cfg.model.d_model * 8 * sparse_layers(cfg, 'encoder') * cfg.data.inputs_length
  cost = lambda c: flops.active_per_token(c)['forward_per_row']
  assert cost(cfg) - cost(twin) == router
  assert all('m' not in letters for letters, _ in cfg.model.decoder)


@pytest.mark.parametrize('method', CAUSAL[1:])
def test_a_choice_has_a_slot_of_its_own(method):
  """Training capacity is at least one slot for every choice, so equal active FLOPs are not dropped away."""
  block = load(f'lm/quickstart:method={method}').blocks.m
  k = dict(switch=1).get(method, 2)
  assert block.router.capacity_factor[0] >= k and block.experts.d_ff * k == 512


def test_text_is_stdlib_on_another_task():
  assert experiment.diff(load('lm/text:method=st_moe'), load('lm/stdlib:method=st_moe')) == {
      'data.task': ('text', 'stdlib')}
