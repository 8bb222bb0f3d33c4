"""BAM as `configs/lm` compares it (arXiv:2408.08274): two attention experts every other layer."""

from stmoe.configs import common
from stmoe.configs.bam import recipe


def blocks(d_ff, num_experts, group_size):
  """Returns blocks whose two attention experts are what the dense layers of a pair have, one of them each."""
  router = dict(name='switch', num_experts=num_experts, jitter=0.0, capacity_factor=(None, None))
  mixed = common.moe(router, d_ff, group_size) | recipe.attention(2, shared_kv=False) | recipe.PARALLEL
  return dict(m=mixed, e=dict(layer='dense', d_ff=d_ff, attention=False))


METHODS = dict(bam=common.compared(blocks, recipe.LOSSES, pattern=lambda pairs: (('em', pairs),)))
