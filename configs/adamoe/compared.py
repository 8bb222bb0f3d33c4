"""AdaMoE as `configs/lm` compares it (arXiv:2406.13233)."""

from stmoe.configs import common

K = 4


def block(d_ff, num_experts, group_size):
  """Returns experts of width F/2: of four choices among them and as many nulls two are real under balance."""
  router = dict(name='adamoe', num_experts=num_experts, num_null=num_experts, k=K)
  return common.moe(router, 2 * d_ff // K, group_size)


# Switch's coefficient, of a loss that is K at balance.
METHODS = dict(adamoe=common.compared(block, dict(balance=(1e-2 / K, 'mean'))))
