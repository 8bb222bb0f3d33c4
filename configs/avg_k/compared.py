"""Avg-K as `configs/lm` compares it (arXiv:2305.13999)."""

from stmoe.configs import common

FINER = 8                              # blocks of a dense layer's width


def block(d_ff, num_experts, group_size):
  """Returns the memory of `num_experts` dense layers, of which a token reads 8 blocks: F cells."""
  return dict(layer='avg_k', d_ff=d_ff // FINER, num_blocks=FINER * num_experts, k=FINER, executor='blocks',
              group_size=group_size)


METHODS = dict(avg_k=common.compared(block))
