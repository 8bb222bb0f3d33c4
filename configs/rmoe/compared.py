"""RMoE as `configs/lm` compares it (arXiv:2408.06793), with a recurrence as narrow as the model is small."""

from stmoe.configs import common
from stmoe.configs.rmoe import paper

WIDTH = 16                         # P


def block(d_ff, num_experts, group_size):
  """Returns two experts of width F/2."""
  return common.moe(dict(name='rmoe', num_experts=num_experts, k=2, width=WIDTH), d_ff // 2, group_size)


METHODS = dict(rmoe=common.compared(block, dict(balance=(paper.BALANCE, 'mean'))))
