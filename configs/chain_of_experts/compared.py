"""Chain of Experts as `configs/lm` compares it (arXiv:2506.18945): two iterations, experts cut into four."""

from stmoe.configs import common
from stmoe.configs.chain_of_experts import paper


def block(d_ff, num_experts, group_size):
  """Returns one shared and one routed expert of width F/4 in each of two iterations."""
  inner = common.moe(dict(name='deepseek_moe', num_experts=4 * num_experts - 1, k=1), d_ff // 4, group_size)
  inner['name'] = inner.pop('layer')
  shared = dict(name='shared', d_ff=d_ff // 4, activation='relu', gated=False, inner=inner)
  return dict(layer='chain_of_experts', norm=False, iterations=paper.ITERATIONS, inner=shared)


METHODS = dict(chain_of_experts=common.compared(block, dict(balance=(paper.BALANCE, 'sum'))))
