"""Checks of ST-MoE at router and layer level; whole models are in check_st_moe_models.py."""

import routers_flaxformer


def masked_router(case):
  routers_flaxformer.masked_router(case, *routers_flaxformer.token_route(case))


def scatter_router(case):
  routers_flaxformer.scatter_router(case, *routers_flaxformer.token_route(case))


def moe_layer(case):
  routers_flaxformer.moe_layer(case)
