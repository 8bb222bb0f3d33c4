"""The compared language models cost the same per token, with or without the router's own product."""

import functools

import pytest

from stmoe import experiment
from stmoe.analysis import flops
from stmoe.configs import common
from stmoe.configs.lm import methods

TABLE = methods.table()
LM = [name for name, row in TABLE.items() if row['backbone'] == 'lm']


def load(name):
  return experiment.load(name)[0]


@functools.cache
def dense_cost(name):
  return flops.active_per_token(load(f'{name}:method=dense'))['forward']


def routers(cfg):
  """FLOPs per token of routers, virtual experts and mixtures' coefficients, on top of a dense model's."""
  added = {'router', 'router_w', 'router_predictor', 'tied', 'residual', 'virtual'}
  pair = lambda m: m.names[-2:] == ('embed', 'unmodeled') and m.shape[-1] == 2     # the coefficients of two
  whole = lambda m: {'tied'} if any(str(key).startswith('block_') for key in m.path) else set()
  return sum(2 * m.multiplied * m.uses for m in flops.matrices(cfg)
             if added & set(m.path) - whole(m) or pair(m))


def test_every_folder_has_its_methods_in_the_table():
  assert {'dense', 'switch', 'gshard', 'st_moe', 'expert_choice'} <= set(TABLE)
  assert TABLE['expert_choice']['backbone'] == 't5'


@pytest.mark.parametrize('method', LM)
def test_equal_active_flops(method):
  for name in ('lm/quickstart', 'lm/stdlib_small') if method == 'switch' else ('lm/quickstart',):
    cfg = load(f'{name}:method={method}')
    cost, dense = flops.active_per_token(cfg)['forward'], dense_cost(name)
    assert cost - dense in (routers(cfg), 0)                         # 0: experts are smaller by the router
    assert cost <= 1.05 * dense


def test_expert_choice_costs_its_dense_twin_in_the_encoder():
  cfg, twin = load('lm/stdlib:method=expert_choice'), load('lm/stdlib:method=dense,backbone=t5')
  cost = lambda c: flops.active_per_token(c)['forward_per_row']
  assert cost(cfg) - cost(twin) == routers(cfg) * cfg.data.inputs_length
  assert all('m' not in letters for letters, _ in cfg.model.decoder)


@pytest.mark.parametrize('method', [name for name in LM if name not in ('dense', 'r_drop')])
def test_a_choice_has_a_slot_of_its_own(method):
  """Training capacity is at least one slot for every choice, so equal active FLOPs are not dropped away."""
  cfg = load(f'lm/quickstart:method={method}')
  block = common.sparse(cfg.blocks.m)
  if block is None:
    pytest.skip('has no section of a router, and no capacity')
  router = common.innermost(block.router)
  edges = {m.share * router.num_experts for m in flops.matrices(cfg) if 'expert' in m.names}
  factor = router.get('capacity_factor', (None,))[0]
  assert factor is None or factor >= max(edges)


def test_text_is_stdlib_on_another_task():
  assert experiment.diff(load('lm/text:method=st_moe'), load('lm/stdlib:method=st_moe')) == {
      'data.task': ('text', 'stdlib')}
