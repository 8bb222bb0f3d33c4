"""Omni-router as `configs/lm` compares it (arXiv:2507.05724): one matrix for all sparse layers."""

from stmoe.configs import common
from stmoe.configs.omni_router import paper


def block(d_ff, num_experts, group_size):
  """Returns an expert of width F for every token."""
  return common.moe(dict(name='omni_router', num_experts=num_experts), d_ff, group_size)


METHODS = dict(omni_router=common.compared(block, dict(balance=(paper.BALANCE, 'sum'))))
