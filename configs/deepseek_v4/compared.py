"""DeepSeek-V4's routing as `configs/lm` compares it: the first sparse layer by token id."""

from stmoe.configs import common
from stmoe.configs.deepseek_moe import compared
from stmoe.configs.deepseek_v4 import paper


def blocks(d_ff, num_experts, group_size):
  """Returns layers of one shared and three routed experts of width F/4: h by token id, m by scores."""
  router = dict(name='deepseek_v4', route_scale=paper.SIZES['flash']['scale'])
  made = lambda **fields: compared.fine_grained(dict(router, **fields), d_ff, num_experts, group_size)
  return dict(h=made(hashed=True, vocab_size=0), m=made())


def pattern(pairs):
  """Returns the layers: the first sparse one is hashed."""
  return (('dh', 1),) + ((('dm', pairs - 1),) if pairs > 1 else ())


METHODS = dict(deepseek_v4=common.compared(blocks, dict(balance=(1e-4, 'sum')), pattern=pattern))
