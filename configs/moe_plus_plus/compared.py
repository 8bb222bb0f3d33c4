"""MoE++ as `configs/lm` compares it (arXiv:2410.07348)."""

from stmoe.configs import common
from stmoe.configs.moe_plus_plus import paper

# Ten times the paper's: with that, nine of ten choices went to virtual experts in the 120 steps of `lm/zoo`.
BALANCE = 0.1


def block(d_ff, num_experts, group_size):
  """Returns experts of width F, of which a token has one on average.

  There are as many virtual experts as make tau E = Z: half of the two choices go to them under balance. The
  gate has one layer, because that of two would cost a tenth of a layer as small as these.
  """
  number = round(paper.TAU * num_experts)
  router = dict(name='moe_plus_plus', num_experts=num_experts, tau=number / num_experts, two_layers=False,
                capacity_factor=(1.25, None))
  return dict(common.moe(router, d_ff, group_size), layer='moe_plus_plus', num_constant=max(number - 2, 0),
              num_copy=int(number > 1), num_zero=1)


METHODS = dict(moe_plus_plus=common.compared(block, dict(balance=(BALANCE, 'mean'))))
