r"""Batch-prioritised routing at inference: capacity far below 1, with the same weights.

Scaling Vision with Sparse Mixture of Experts (arXiv:2106.05974), section 4. The model is the model of
vmoe/ilsvrc2012; cf is the capacity factor of evaluation. A run is trained once and evaluated at any factor:

  stmoe train vmoe/bpr --workdir runs/bpr
  stmoe eval runs/bpr --sweep 'blocks.m.router.capacity_factor=(1.05,0.1);(1.05,0.3);(1.05,1.0)'
  and the same with --config.blocks.m.router.batch_priority=True
  stmoe train vmoe/bpr:smoke                               laptop, on scikit-learn's digits, about a minute
  stmoe train vmoe/bpr:bpr=True,cf=0.5                     priority in training too

Expected: with priority at least the accuracy of the run without priority, for every factor below 1. The gap
grows as the factor falls (the figures are not at hand).
Differs: as vmoe/ilsvrc2012; in training without priority, as in the released configurations.
"""

from stmoe.configs import arguments
from stmoe.configs.vmoe import ilsvrc2012

VARIANTS = ('bpr=True', 'cf=0.25')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, cf=0.5, bpr=False)
  c = ilsvrc2012.get_config('smoke' if args.smoke else '').unlock()
  router = c.blocks.m.router
  router.update(capacity_factor=(router.capacity_factor[0], args.cf), batch_priority=args.bpr)
  return c.lock()
