"""Union of Experts as `configs/lm` compares it (arXiv:2503.02495): shards of F/2, two for every token."""

from stmoe.configs import common


def block(gate):
  """Returns the function of a row: causal selection, attention dense."""
  def sharded(d_ff, num_experts, group_size):
    router = dict(name='union_of_experts', num_experts=num_experts, k=2, select='causal', gate=gate)
    return common.moe(router, d_ff // 2, group_size)
  return sharded


# As released the gate is frozen and outputs are added up. Multiplied by its scores, the gate is trained.
METHODS = dict(union_of_experts=common.compared(block('none')),
               union_of_experts_trained=common.compared(block('multiply')))
