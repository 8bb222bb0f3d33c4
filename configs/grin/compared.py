"""GRIN as `configs/lm` compares it (arXiv:2409.12136)."""

from stmoe.configs import common


def block(d_ff, num_experts, group_size):
  """Returns two experts of width F/2, drawn within the window of SparseMixer's example."""
  return common.moe(dict(name='grin', num_experts=num_experts, k=2, epsilon=0.1), d_ff // 2, group_size)


METHODS = dict(grin=common.compared(block, common.BALANCE))
