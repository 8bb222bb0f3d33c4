"""DynMoLE's layer as `configs/lm` compares it, all of it trained from the start (arXiv:2504.00661)."""

from stmoe.configs import common
from stmoe.configs.dynmole import paper
from stmoe.configs.dynmole import tuning


def block(d_ff, num_experts, group_size, d_model):
  """Returns a layer of width F' with experts of rank D / E beside both matrices.

  With all E of them, which a trained router seldom asks for, 2 D F' + 2 D (D + F') is 2 D F: the method costs
  less than is counted. The metric active_experts says how much.
  """
  router = dict(name='dynmole', num_experts=num_experts, p=paper.P, keep=paper.KEEP,
                threshold=paper.THRESHOLD)
  rank = d_model // common.whole('experts', num_experts, 1, d_model)
  return dict(layer='dynmole', d_ff=(d_ff - d_model) // 2, activation='relu', gated=False, rank=rank,
              alpha=2.0 * rank, executor='blocks', group_size=group_size, router=router)


METHODS = dict(dynmole=common.compared(block, tuning.losses(), sizes=('d_model',)))
