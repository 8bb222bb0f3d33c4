"""ZAYA's router as `configs/lm` compares it, with a network as narrow as the model is small."""

from stmoe.configs import common
from stmoe.configs.zaya import paper

HIDDEN = 16


def block(d_ff, num_experts, group_size):
  """Returns an expert for every token, or none where the skip expert is chosen: width F under balance."""
  router = dict(name='zaya', num_experts=num_experts, hidden=HIDDEN, skip_bias=paper.SKIP_BIAS)
  return common.moe(router, d_ff * (num_experts + 1) // num_experts, group_size) | dict(virtual=('zero',))


METHODS = dict(zaya=common.compared(block))
