"""MPOE as `configs/lm` compares it (arXiv:2203.01104)."""

from stmoe.configs import common


def block(d_ff, num_experts, group_size):
  """Returns top-1 experts of width F whose matrices share their central tensors; nothing is dropped."""
  return common.moe(dict(name='mpoe', num_experts=num_experts), d_ff, group_size, experts='mpo')


METHODS = dict(mpoe=common.compared(block))
