r"""The threshold above which a second and third expert are certain: 0.2 or 0.05, top-2 or top-3.

ST-MoE (arXiv:2202.08906), routing thresholds: capacity factor 3. Expected (paper.THRESHOLDS): top-2 0.2
-1.354, 0.05 -1.356; top-3 0.2 -1.351, 0.05 -1.349. Differs: C4/en.

  stmoe train st_moe/threshold:top=3,threshold=0.05
  stmoe train st_moe/threshold:smoke                  laptop, about a minute
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.st_moe import paper
from stmoe.configs.st_moe import recipe

# Arguments beside '' and 'smoke': an argument for each other path through this file.
VARIANTS = ('top=3,threshold=0.05',)


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, top=2, threshold=paper.THRESHOLD)
  c = recipe.pretraining(paper.SIZES['l'], paper.OPTIM['ablation_steps'],
                         router=dict(k=args.top, threshold=args.threshold, capacity_factor=(3.0, 3.0)))
  return common.smoke(c) if args.smoke else c.lock()
