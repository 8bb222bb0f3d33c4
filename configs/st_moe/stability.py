r"""Stability over seeds: nothing, update clipping at 0.1, or the router z-loss.

ST-MoE (arXiv:2202.08906), section 3. Expected (paper.STABILITY): 4 of 6 seeds stable at -1.755 without, 3
of 3 at -4.206 with the clip, 3 of 3 at -1.741 with the z-loss.
Differs: C4/en; the size of these runs is not at hand, ST-MoE-L is taken.

  stmoe train st_moe/stability:method=baseline --config.seed=3
  stmoe train st_moe/stability:method=clip,smoke      laptop, about a minute
  method = baseline | clip | z
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.st_moe import paper
from stmoe.configs.st_moe import recipe

# Arguments beside '' and 'smoke': an argument for each other path through this file.
VARIANTS = ('method=baseline', 'method=clip')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='z')
  clip, z = common.choose('method', args.method,
                          dict(baseline=(1.0, 0.0), clip=(0.1, 0.0), z=(1.0, paper.ROUTER_Z)))
  c = recipe.pretraining(paper.SIZES['l'], paper.OPTIM['ablation_steps'])
  c.optimizer.clipping_threshold = clip
  c.losses.z = (z, 'mean')
  return common.smoke(c) if args.smoke else c.lock()
