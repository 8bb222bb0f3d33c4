"""GShard as `configs/lm` compares it (arXiv:2006.16668)."""

from stmoe.configs import common


def block(d_ff, num_experts, group_size):
  """Returns GShard: two experts of width F/2; capacity 2 S / E, its factor counts both choices."""
  router = dict(name='gshard', num_experts=num_experts, capacity_factor=(2.0, 2.0))
  return common.moe(router, d_ff // 2, group_size)


METHODS = dict(gshard=common.compared(block, common.BALANCE))
