"""MoFME as `configs/lm` compares it (arXiv:2312.16610)."""

from stmoe.configs import common
from stmoe.configs.mofme import paper


def block(d_ff, num_experts, group_size, d_model):
  """Returns modulated features and an adaptor: 2 D^2 + 2 k D^2 + 2 D F' = 2 D F active products.

  Two experts cost 4 D^2, whatever the width of the dense layer is; the adaptor is narrower instead. It has a
  quarter of D at least: beside a dense layer of 2 D, as in small smoke runs, MoFME costs that much more.
  """
  k = paper.K[0]
  adaptor = max(d_ff - (1 + k) * d_model, d_model // 4)
  router = dict(name='mofme', num_experts=num_experts, k=k)
  return dict(layer='mofme', executor='blocks', group_size=group_size, d_ff=adaptor, router=router,
              experts=dict(name='film'))


METHODS = dict(mofme=common.compared(block, sizes=('d_model',)))
