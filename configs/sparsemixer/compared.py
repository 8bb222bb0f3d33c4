"""SparseMixer and its baseline as `configs/lm` compares them (arXiv:2310.00811)."""

from stmoe.configs import common
from stmoe.configs.sparsemixer import paper


def sparsemixer(d_ff, num_experts, group_size):
  """Returns one expert of width F a token, and the scale of the layer's output."""
  router = dict(name='sparsemixer', num_experts=num_experts, epsilon=paper.EPSILON)
  inner = common.moe(router, d_ff, group_size)
  return dict(layer='scaled', inner=dict(inner, name=inner.pop('layer')))


def switch_gate(d_ff, num_experts, group_size):
  """Returns the same without sampling: jitter on the logits, the argmax, its probability."""
  return common.moe(dict(name='switch_gate', num_experts=num_experts, epsilon=paper.EPSILON), d_ff,
                    group_size)


LOSSES = dict(balance=(paper.BALANCE, 'sum'), z=(0.0, 'mean'))
METHODS = dict(sparsemixer=common.compared(sparsemixer, LOSSES),
               switch_gate=common.compared(switch_gate, LOSSES))
