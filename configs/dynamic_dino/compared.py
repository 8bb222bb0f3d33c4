"""Dynamic-DINO's layer as `configs/lm` compares it (arXiv:2507.17436), from random numbers."""

from stmoe.configs import common
from stmoe.configs.dynamic_dino import paper


def block(d_ff, num_experts, group_size):
  """Returns slices of width F / k, of which a token has k, with gates of mean 1."""
  router = dict(name='dynamic_dino', num_experts=num_experts, k=paper.K)
  return common.moe(router, d_ff // paper.K, group_size)


METHODS = dict(dynamic_dino=common.compared(block, dict(balance=paper.BALANCE)))
