"""PEER as `configs/lm` compares it (arXiv:2407.04153)."""

import math

from stmoe.configs import common
from stmoe.configs.peer import paper

K = 16                               # neurons of a head


def block(d_ff, num_experts, group_size, d_model):
  """Returns as many neurons as E experts of width F have, in as many heads as a dense layer pays for.

  A head costs 2 D k of neurons and d (D + n) of queries and keys, in place of 2 D F.
  """
  n, d_key = math.isqrt(num_experts * d_ff), d_model // 2
  heads = max(1, round(2 * d_model * d_ff / (2 * d_model * K + d_key * (d_model + n))))
  router = dict(name='peer', num_experts=n * n, heads=heads, k=K, d_key=d_key, gates=paper.GATES)
  return common.moe(router, paper.D_EXPERT, group_size, activation='gelu') | dict(executor='fetch')


METHODS = dict(peer=common.compared(block, sizes=('d_model',)))
