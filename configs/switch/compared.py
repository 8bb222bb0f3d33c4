"""Switch as `configs/lm` compares it (arXiv:2101.03961)."""

from stmoe.configs import common


def block(d_ff, num_experts, group_size):
  """Returns Switch: each token to its first expert, experts of width F."""
  router = dict(name='switch', num_experts=num_experts, capacity_factor=(1.25, 2.0))
  return common.moe(router, d_ff, group_size)


METHODS = dict(switch=common.compared(block, common.BALANCE))
