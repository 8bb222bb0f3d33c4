"""Dynamic top-p routing as `configs/lm` compares it (arXiv:2403.07652)."""

import math

from stmoe.configs import common
from stmoe.configs.top_p_routing import paper


def block(d_ff, num_experts, group_size):
  """Returns experts of a width that costs F where the router is flat, floor(p E) + 1 of them a token.

  A trained router has fewer: the method costs less than is counted. The metric active_experts says how much.
  """
  common.whole('experts', num_experts, 1, math.ceil(d_ff / paper.P) - 1)
  router = dict(name='top_p_routing', num_experts=num_experts, p=paper.P)
  return common.moe(router, d_ff // (int(paper.P * num_experts) + 1), group_size)


METHODS = dict(top_p_routing=common.compared(block, dict(balance=(paper.BALANCE, 'mean'),
                                                         entropy=(paper.ENTROPY, 'mean'))))
