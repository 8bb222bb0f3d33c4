"""MoEUT's sparse layer as `configs/lm` compares it (arXiv:2405.16039): all compared layers are one.

Attention stays that of the other methods, whose FLOPs SwitchHead would not have.
"""

from stmoe.configs import common
from stmoe.configs.moeut import paper

FINER = 4                              # experts of a dense layer's width


def block(d_ff, num_experts, group_size):
  """Returns four experts of width F/4 for every token, in a block whose passes have one set of arrays."""
  router = dict(name='sigma_moe', num_experts=FINER * num_experts, k=FINER)
  return common.moe(router, d_ff // FINER, group_size) | dict(layer='moeut', tied=True)


METHODS = dict(moeut=common.compared(block, dict(entropy=(paper.ENTROPY['ffn'], 'mean'))))
