"""Loss-free balancing as `configs/lm` compares it (arXiv:2408.15664)."""

from stmoe.configs import common
from stmoe.configs.deepseek_moe import compared


def block(d_ff, num_experts, group_size):
  """Returns the paper's kind of layer: a shared and three routed experts of width F/4, sigmoids."""
  return compared.fine_grained(dict(name='loss_free_balancing'), d_ff, num_experts, group_size)


METHODS = dict(loss_free_balancing=common.compared(block))
