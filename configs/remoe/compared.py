"""ReMoE as `configs/lm` compares it (arXiv:2412.14711)."""

from stmoe.configs import common

K = 2
INITIAL = 1e-7                       # of lambda, where the paper has 1e-8: the compared trainings are short


def block(d_ff, num_experts, group_size):
  """Returns experts of width F/2, two of them a token on average once lambda has grown.

  FLOPs are counted with two, also in the first steps, which compute more: see the metric active_experts.
  """
  router = dict(name='remoe', num_experts=num_experts, k=K, initial=INITIAL)
  return common.moe(router, d_ff // K, group_size)


METHODS = dict(remoe=common.compared(block, dict(sparsity=(1.0, 'sum'))))
