"""MoFME as `configs/lm` compares it (arXiv:2312.16610)."""

from stmoe.configs import common
from stmoe.configs.mofme import paper


def block(d_ff, num_experts, group_size, d_model):
  """Returns modulated features and an adaptor: 2 D^2 + 2 k D^2 + 2 D F' = 2 D F active products.

  Two experts cost 4 D^2, whatever the width of the dense layer is; the adaptor is narrower instead.
  """
  k = paper.K[0]
  router = dict(name='mofme', num_experts=num_experts, k=k)
  return dict(layer='mofme', executor='blocks', group_size=group_size, d_ff=d_ff - (1 + k) * d_model,
              router=router, experts=dict(name='film'))


METHODS = dict(mofme=common.compared(block, sizes=('d_model',)))
