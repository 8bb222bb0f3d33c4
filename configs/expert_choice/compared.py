"""Expert choice as `configs/lm` compares it (arXiv:2202.09368)."""

from stmoe.configs import common


def block(d_ff, num_experts, group_size):
  """Returns expert choice: every expert takes 2 S / E tokens; experts of width F/2."""
  router = dict(name='expert_choice', num_experts=num_experts, capacity_factor=(2.0, 2.0))
  return common.moe(router, d_ff // 2, group_size)


# Expert choice looks at the whole group before it chooses. In a causal stack it would see the tokens it has
# to predict, so its home is an encoder.
METHODS = dict(expert_choice=common.compared(block, backbone='t5'))
