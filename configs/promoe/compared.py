"""ProMoE's router as `configs/lm` compares it (arXiv:2510.24711): prototypes, a shared expert, no classes."""

from stmoe.configs import common
from stmoe.configs.promoe import blocks


def block(d_ff, num_experts, group_size):
  """Returns experts of width F/2 and a shared one; all tokens have prototypes to go to."""
  made = blocks.sparse('promoe', d_ff // 2, num_experts, group_size)
  made['inner']['router'].update(num_experts=num_experts, unconditional=False)
  return made


METHODS = dict(promoe=common.compared(block, dict(contrastive=(1.0, 'sum'), balance=(0.0, 'mean'))))
