"""V-MoE's router as `configs/lm` compares it (arXiv:2106.05974)."""

from stmoe.configs import common
from stmoe.configs.vmoe import paper


def block(d_ff, num_experts, group_size):
  """Returns V-MoE: two experts of width F/2, raw gates; without batch priority, which is not causal.

  No drops: the paper's 1.05 slots a choice drop some of the FLOPs that are to be equal.
  """
  router = dict(name='vmoe', num_experts=num_experts, k=paper.ROUTING['k'], capacity_factor=(None, None))
  return common.moe(router, d_ff // 2, group_size)


LOSSES = dict(importance=(paper.IMPORTANCE, 'sum'), load=(paper.LOAD, 'sum'))
METHODS = dict(vmoe=common.compared(block, LOSSES))
