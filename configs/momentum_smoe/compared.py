"""MomentumSMoE, AdamSMoE and Robust MomentumSMoE as `configs/lm` compares them (arXiv:2410.14574).

Two experts of width F/2, pre-norm blocks, no balance loss; `smoe` is the same without momentum.
"""

from stmoe.configs import common
from stmoe.configs.momentum_smoe import paper
from stmoe.configs.momentum_smoe import recipe


def smoe(d_ff, num_experts, group_size):
  """Returns the plain sparse layer: two experts of width F/2."""
  return common.moe(dict(name='smoe', num_experts=num_experts, k=paper.K), d_ff // paper.K, group_size)


def wrapped(layer, **fields):
  """Returns the block function of `layer` around `smoe`."""
  def block(*sizes):
    inner = smoe(*sizes)
    return dict(layer=layer, inner=dict(inner, name=inner.pop('layer')), **fields)
  return block


momentum = wrapped('momentum', **paper.MOMENTUM)
adam = wrapped('adam_momentum', **paper.ADAM['medium'])
# The step is a step of the residual stream: the layer itself normalises where it takes the gradient.
robust = wrapped('robust_momentum', norm=False, normalize=True, **recipe.ROBUST)


def first_adam(pairs):
  """Returns the layers of AdamSMoE: Adam in the first sparse layer, heavy ball in the layers above it."""
  return (('da', 1),) + ((('dm', pairs - 1),) if pairs > 1 else ())


METHODS = dict(
    smoe=common.compared(smoe),
    momentum_smoe=common.compared(momentum),
    adam_smoe=common.compared(lambda *sizes: dict(a=adam(*sizes), m=momentum(*sizes)), pattern=first_adam),
    robust_momentum_smoe=common.compared(robust),
)
