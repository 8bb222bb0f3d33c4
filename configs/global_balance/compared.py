"""Global-batch balance as `configs/lm` compares it (arXiv:2501.11873)."""

from stmoe.configs import common


def block(d_ff, num_experts, group_size):
  """Returns two experts of width F/2 by softmax, nothing dropped, balanced over the whole batch."""
  inner = dict(name='deepseek_moe', num_experts=num_experts, k=2, normalize_gates=True)
  return common.moe(dict(name='balance', scope='global', inner=inner), d_ff // 2, group_size)


METHODS = dict(global_balance=common.compared(block, dict(balance=(1e-2, 'sum'))))
