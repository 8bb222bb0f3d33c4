"""Graph of Tokens as `configs/lm` compares it (arXiv:2505.00792, unverified): by attention."""

from stmoe.configs import common


def block(d_ff, num_experts, group_size):
  """Returns two experts of width F/2; groups are whole sequences, which the graph is of."""
  router = dict(name='graph_of_tokens', num_experts=num_experts, by='attention')
  attention = dict(name='graph_of_tokens', head='earlier')
  return common.moe(router, d_ff // 2) | dict(attention=attention)


METHODS = dict(graph_of_tokens=common.compared(block, dict(balance=(1e-2, 'mean'))))
