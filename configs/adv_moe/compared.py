"""AdvMoE's router as `configs/lm` compares it (arXiv:2308.10110): of tokens, without attacks."""

from stmoe.configs import common


def block(d_ff, num_experts, group_size):
  """Returns one expert of the dense width for each token, not weighted, with a straight-through gradient."""
  return common.moe(dict(name='adv_moe', num_experts=num_experts), d_ff, group_size)


METHODS = dict(adv_moe=common.compared(block))
