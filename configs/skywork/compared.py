"""Skywork-MoE as `configs/lm` compares it (arXiv:2406.06563)."""

from stmoe.configs import common


def block(d_ff, num_experts, group_size):
  """Returns two experts of width F/2; capacity is 1.25 slots a choice, like Switch's."""
  router = dict(name='skywork', num_experts=num_experts, capacity_factor=(2.5, 4.0))
  return common.moe(router, d_ff // 2, group_size)


METHODS = dict(skywork=common.compared(block, dict(adaptive_balance=(1.0, 'sum'), balance=(0.0, 'sum'))))
