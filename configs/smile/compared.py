"""SMILE as `configs/lm` compares it (arXiv:2212.05191)."""

from stmoe.configs import common
from stmoe.configs.smile import paper


def block(d_ff, num_experts, group_size):
  """Returns one expert of width F; both levels have the 1.25 places per token of Switch."""
  router = dict(name='smile', num_experts=num_experts, capacity_factor=(1.25, 2.0))
  return common.moe(router, d_ff, group_size)


LOSSES = dict(node_balance=(paper.ALPHA, 'mean'), local_balance=(paper.BETA, 'mean'))
METHODS = dict(smile=common.compared(block, LOSSES))
