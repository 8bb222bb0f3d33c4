"""CompeteSMoE as `configs/lm` compares it (arXiv:2402.02526)."""

from stmoe.configs import common
from stmoe.configs.compete_smoe import paper


def block(d_ff, num_experts, group_size):
  """Returns two experts of width F/2; the steps of competition are more FLOPs, and so fewer steps."""
  router = dict(paper.SCHEDULE, name='compete_smoe', num_experts=num_experts, num_layers=16, total_steps=1)
  sparse = common.moe(router, d_ff // 2, group_size)
  return dict(sparse, layer='compete_smoe', taught=paper.TAUGHT, theta=paper.THETA)


METHODS = dict(compete_smoe=common.compared(
    block, {name: (paper.VISION.get(name, 0.0), 'mean') for name in paper.LOSSES}))
