"""THOR and its control R-Drop as `configs/lm` compares them (arXiv:2110.04260, arXiv:2106.14448).

R-Drop is dense: its two passes differ in their dropout, where THOR's passes differ in their experts.
"""

from stmoe.configs import common
from stmoe.configs.thor import paper

# Of R-Drop: our choice for models that see their text once (the paper's translation models: 0.3).
DROPOUT = 0.1


def block(d_ff, num_experts, group_size):
  """Returns stochastic experts of width F; every token is sent to one, so groups are of no consequence.

  A step is two passes and costs two of the other methods' steps: `stmoe compare` gives THOR half the steps.
  """
  return common.moe(dict(name='thor', num_experts=num_experts, eval_dispatch='sentence'), d_ff, group_size)


def dense(d_ff, num_experts, group_size):
  """Returns the dense layer of width F, with dropout on its hidden activation."""
  return dict(layer='dense', d_ff=d_ff, dropout_rate=DROPOUT)


CONSISTENT = dict(passes=2, consistency=paper.CONSISTENCY)
METHODS = dict(thor=common.compared(block, loss=CONSISTENT),
               r_drop=common.compared(dense, loss=CONSISTENT, model=dict(dropout_rate=DROPOUT)))
