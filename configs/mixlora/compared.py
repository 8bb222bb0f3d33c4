"""MixLoRA's layer as `configs/lm` compares it, all of it trained from the start (arXiv:2404.15159)."""

from stmoe.configs import common
from stmoe.configs.mixlora import paper


def block(d_ff, num_experts, group_size, d_model):
  """Returns a layer of width F' whose experts differ by matrices of rank D / 4, two for a token.

  What is computed once and twice, 3 D F' + D (D + F'), is 2 D F.
  """
  return dict(layer='mixlora', d_ff=(2 * d_ff - d_model) // 4, activation='relu', gated=False,
              rank=d_model // 4, alpha=2.0 * (d_model // 4), executor='blocks', group_size=group_size,
              router=dict(name='mixlora', num_experts=num_experts, k=paper.K))


METHODS = dict(mixlora=common.compared(block, dict(balance=(paper.BALANCE, 'mean')), sizes=('d_model',)))
