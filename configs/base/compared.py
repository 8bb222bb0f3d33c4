"""BASE and S-BASE as `configs/lm` compares them (arXiv:2103.16716, arXiv:2202.01169).

Both look at later tokens in training, and say so by allow_causal=True. Both are evaluated greedily,
which is causal. So their validation losses compare with other methods', their training losses do not.
"""

from stmoe.configs import common
from stmoe.configs.base import recipe


def base(d_ff, num_experts, group_size):
  """Returns BASE in the place of a feed-forward layer: a sublayer of width F, shuffled groups."""
  return recipe.block(d_ff, num_experts, 1, group_size, executor='blocks')


def s_base(d_ff, num_experts, group_size):
  """Returns S-BASE: a single expert of width F for every token, nothing dropped."""
  return common.moe(dict(name='s_base', num_experts=num_experts, allow_causal=True), d_ff, group_size)


METHODS = dict(base=common.compared(base), s_base=common.compared(s_base))
