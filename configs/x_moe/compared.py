"""X-MoE with one softmax and with two, and the perturbed cosine, as `configs/lm` compares them."""

from stmoe.configs import common
from stmoe.configs.x_moe import paper


def routed(name, **fields):
  """Returns the block function of two experts of width F/2 behind router `name`."""
  def block(d_ff, num_experts, group_size):
    return common.moe(dict(fields, name=name, num_experts=num_experts, k=2), d_ff // 2, group_size)
  return block


LOSSES = dict(common.BALANCE, entropy=(0.0, 'mean'))
METHODS = dict(
    x_moe=common.compared(routed('x_moe'), LOSSES),
    x_moe_double=common.compared(routed('x_moe', **paper.LIBMOE), LOSSES),
    perturbed_cosine=common.compared(routed('perturbed_cosine', **paper.PERTURBED), LOSSES))
