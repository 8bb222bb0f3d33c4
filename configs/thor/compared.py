"""THOR as `configs/lm` compares it (arXiv:2110.04260)."""

from stmoe.configs import common
from stmoe.configs.thor import paper


def block(d_ff, num_experts, group_size):
  """Returns stochastic experts of width F; every token is sent to one, so groups are of no consequence.

  A step is two passes and costs two of the other methods' steps: `stmoe compare` gives it half of them.
  """
  return common.moe(dict(name='thor', num_experts=num_experts, eval_dispatch='sentence'), d_ff, group_size)


METHODS = dict(thor=common.compared(block, loss=dict(passes=2, consistency=paper.CONSISTENCY)))
