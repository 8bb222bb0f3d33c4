"""Checks of ST-MoE at router and layer level; whole models are in check_st_moe_models.py."""

import functools

import routers_flaxformer

from stmoe.routers import st_moe

# flaxformer: raw gates, every choice sent, f counts any of the k choices.
FLAXFORMER = dict(normalize_gates=False, second_policy='all', balance_choices='any')


def _route(case):
  return functools.partial(st_moe.st_moe, k=case.config['num_selected_experts'], **FLAXFORMER,
                           batch_priority=case.config['batch_prioritized_routing'])


def masked_router(case):
  routers_flaxformer.masked_router(case, _route(case), case.config['num_selected_experts'])


def scatter_router(case):
  routers_flaxformer.scatter_router(case, _route(case), case.config['num_selected_experts'])


def moe_layer(case):
  k = case.config['num_selected_experts']
  router = functools.partial(st_moe.STMoE, k=k, **FLAXFORMER,
                             batch_priority=case.config['batch_prioritized_routing'])
  routers_flaxformer.moe_layer(case, router, k)
