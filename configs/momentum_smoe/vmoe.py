r"""Momentum V-MoE: V-MoE S/32 on ILSVRC2012, with momentum from each sparse layer to the next.

MomentumSMoE (arXiv:2410.14574), whose code for images was never released. Its hyper-parameters are not known
here, so model and training are V-MoE's (vmoe/ilsvrc2012) and mu, gamma those of the language models
(paper.MOMENTUM). Expected: better than method=vmoe, by how much is not known (unverified).
Differs: pre-norm blocks, whose residual takes the step: x - m instead of LN(x - m). Every second layer is
sparse, four in all, so that momentum has layers to pass. No evaluation on ImageNet-A, -O, -R and -C.

  stmoe train momentum_smoe/vmoe --workdir runs/momentum_vmoe
  stmoe train momentum_smoe/vmoe:smoke                  laptop, on scikit-learn's digits, about a minute
  method = vmoe | momentum | adam | robust
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.momentum_smoe import paper
from stmoe.configs.momentum_smoe import recipe
from stmoe.configs.vmoe import ilsvrc2012

VARIANTS = ('method=vmoe', 'method=adam', 'method=robust')
SPARSE = 4                             # 2 in V-MoE's released model


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='momentum')
  c = ilsvrc2012.get_config(f'last={SPARSE}' + ',smoke' * args.smoke).unlock()
  inner = c.blocks.m.to_dict()
  inner['name'] = inner.pop('layer')
  momentum = dict(layer='momentum', **paper.MOMENTUM, inner=inner)
  blocks, letters = common.choose('method', args.method, dict(
      vmoe=(dict(m=c.blocks.m), 'm'),
      momentum=(dict(m=momentum), 'm'),
      adam=(dict(m=momentum, a=dict(layer='adam_momentum', **paper.ADAM['medium'], inner=inner)), 'am'),
      robust=(dict(m=dict(layer='robust_momentum', norm=False, **recipe.ROBUST, inner=inner)), 'm')))
  # Dense and sparse blocks in turn; two sparse blocks at least, so that a state passes on.
  units = [f'd{letter}' for letter in letters]
  repeats = 2 if args.smoke else SPARSE
  c.model.layers = (*((unit, 1) for unit in units[:-1]), (units[-1], repeats - len(units) + 1))
  del c.blocks['m']
  c.blocks.update(blocks)
  return c.lock()
