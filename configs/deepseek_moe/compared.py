"""DeepSeekMoE and DeepSeek-V3 as `configs/lm` compares them (arXiv:2401.06066, arXiv:2412.19437)."""

from stmoe.configs import common


def fine_grained(router, d_ff, num_experts, group_size):
  """Returns experts cut into four: a shared and three routed experts of width F/4 for every token."""
  inner = common.moe(dict(router, num_experts=4 * num_experts - 1, k=3), d_ff // 4, group_size)
  inner['name'] = inner.pop('layer')
  return dict(layer='shared', d_ff=d_ff // 4, activation='relu', gated=False, inner=inner)


def deepseek_moe(d_ff, num_experts, group_size):
  """Returns softmax routing with raw gates."""
  return fine_grained(dict(name='deepseek_moe'), d_ff, num_experts, group_size)


def deepseek_v3(d_ff, num_experts, group_size):
  """Returns sigmoid routing with a selection bias; the gates' sum is that of V3."""
  return fine_grained(dict(name='deepseek_v3', route_scale=2.5), d_ff, num_experts, group_size)


METHODS = dict(
    deepseek_moe=common.compared(deepseek_moe, dict(balance=(1e-2, 'sum'))),       # V1's validation model
    deepseek_v3=common.compared(deepseek_v3, dict(balance=(1e-4, 'sum'))))
