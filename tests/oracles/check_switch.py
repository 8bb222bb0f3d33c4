"""Checks of Switch at router and layer level; whole models are in check_switch_models.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import routers_flaxformer
import routers_mesh

from stmoe.core import choices
from stmoe.core import losses
from stmoe.routers import ntlb
from stmoe.routers import switch
from stmoe.routers import switch_max


def masked_router(case):
  routers_flaxformer.masked_router(case, *routers_flaxformer.token_route(case))


def scatter_router(case):
  routers_flaxformer.scatter_router(case, *routers_flaxformer.token_route(case))


def moe_layer(case):
  if 'table' in case:
    return routers_flaxformer.group_and_capacity_table(case)
  return routers_flaxformer.moe_layer(case)


def _mesh_balance(k, logits, mask, aux):
  if mask.all():                                                     # then ours needs no translation
    return aux.losses['balance']
  # f and P run over all S tokens, padding included; their product is then multiplied by the group's
  # share of real tokens (a broadcasting side effect of the reference).
  probs = jax.nn.softmax(logits, axis=-1)
  every = losses.balance_of_groups(probs, choices.choose(probs, k), np.ones_like(mask))
  return jnp.mean(every * jnp.mean(mask, axis=1)) / k


def mesh_switch(case):
  routers_mesh.undrawn(case)
  routers_mesh.compare(case, switch.switch, functools.partial(_mesh_balance, 1))


def mesh_switch_max(case):
  routers_mesh.undrawn(case)
  routers_mesh.compare(case, switch_max.switch_max, functools.partial(_mesh_balance, 1))


def mesh_ntlb(case):
  routers_mesh.undrawn(case)
  k = case.config['ntlb_top_k']
  routers_mesh.compare(case, functools.partial(ntlb.ntlb, k=k), functools.partial(_mesh_balance, k))
