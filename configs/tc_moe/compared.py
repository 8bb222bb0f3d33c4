"""TC-MoE as `configs/lm` compares it (ICLR 2025)."""

from stmoe.configs import common
from stmoe.configs.tc_moe import paper


def block(d_ff, num_experts, group_size):
  """Returns two of 2E + 2 choices of width F/2 a token; choices of nulls compute less, and are counted."""
  return common.moe(dict(paper.ROUTER, name='tc_moe', num_experts=num_experts), d_ff // 2, group_size)


METHODS = dict(tc_moe=common.compared(
    block, dict(balance=(paper.BALANCE, 'mean'), z=(paper.Z, 'mean'), reward=(paper.REWARD, 'mean'))))
