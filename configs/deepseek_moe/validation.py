r"""The 2B validation model, its baselines, and the series from 16 wide to 64 narrow experts with one shared.

DeepSeekMoE (arXiv:2401.06066), section 4: 9 layers, all sparse, 100B tokens. Expected Pile loss
(paper.REPORTED): dense 2.060, Switch 1.881, GShard 1.867, DeepSeekMoE (m=4) 1.808, GShard with experts
1.5 times as wide 1.808, dense with all 16 experts 1.806. Section 4.4 has a series of equal parameters and
FLOPs. Its loss falls from m=1,shared=False (16 experts, top-2) over m=1 (1 + 15) and m=2 (1 + 31)
to m=4 (1 + 63 at a quarter of the width).
Differs: C4/en and a vocabulary trained on it instead of the paper's corpus; initial variances (recipe.py);
the baselines' balance coefficient is DeepSeekMoE's, theirs is not stated. Hash routing is left out here.

  stmoe train deepseek_moe/validation --workdir runs/deepseek_moe
  stmoe train deepseek_moe/validation:m=2
  stmoe train deepseek_moe/validation:model=gshard,smoke          laptop, about a minute
  model = deepseek_moe | switch | gshard | gshard_15 | dense | dense_16; m = 1 | 2 | 4
"""

from stmoe import errors
from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.deepseek_moe import paper
from stmoe.configs.deepseek_moe import recipe

EXPERTS = 16                                   # of full width; m times as many of 1/m width
FULL = 4 * paper.SIZES['validation']['d_ff']   # width of a standard feed-forward layer
FREE = (None, None)                            # no token dropping

# baseline -> (router and its fields, width in FULL).
BASELINES = dict(
    switch=(dict(name='switch', capacity_factor=FREE, jitter=0.0), 1),
    gshard=(dict(name='gshard', capacity_factor=FREE, second_policy='all'), 1),
    gshard_15=(dict(name='gshard', capacity_factor=FREE, second_policy='all'), 1.5),
    dense=(None, 1),
    dense_16=(None, 16),
)
VARIANTS = ('m=1,shared=False', 'm=2', 'model=switch', 'model=gshard_15', 'model=dense')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, model='deepseek_moe', m=4, shared=True)
  size = paper.SIZES['validation']
  losses = dict(balance=(paper.LOSSES['validation'][0], 'sum'), z=(0.0, 'mean'))
  if args.model == 'deepseek_moe':
    if args.m not in (1, 2, 4):
      near = 1 if args.m < 1 else 4
      raise errors.UserError(f'm={args.m}: an expert is cut into 1, 2 or 4; nearest: {near}')
    shared = int(args.shared)
    size = dict(size, routed=EXPERTS * args.m - shared, shared=shared, d_ff=FULL // args.m)
    router = dict(name='deepseek_moe', k=2 * args.m - shared)
    losses = losses | dict(device=(0.0, 'mean'), communication=(0.0, 'mean'))
  else:
    router, width = common.choose('model', args.model, dict(deepseek_moe=None, **BASELINES))
    size = dict(size, routed=EXPERTS if router else 0, shared=0, d_ff=int(FULL * width))
    losses = losses if router else common.NO_LOSSES
    losses = losses | (dict(second_place=(0.0, 'mean')) if args.model.startswith('gshard') else {})
  c = recipe.pretraining(size, paper.RUNS['validation'], router, losses)
  return recipe.smoke(c) if args.smoke else c.lock()
