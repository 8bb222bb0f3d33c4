"""Quantile balancing as `configs/lm` compares it (kexue.fm 11619)."""

from stmoe.configs import common
from stmoe.configs.deepseek_moe import compared


def block(d_ff, num_experts, group_size):
  """Returns the layer of loss-free balancing: one shared and three routed experts of width F/4."""
  return compared.fine_grained(dict(name='quantile_balancing'), d_ff, num_experts, group_size)


METHODS = dict(quantile_balancing=common.compared(block))
