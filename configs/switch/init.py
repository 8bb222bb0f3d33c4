r"""Initial variance of a tenth against the usual one: quality early in training, over seeds.

Switch Transformers (arXiv:2101.03961), section 2.4. Expected (paper.INIT, mean and deviation over
seeds): scale 0.1 -2.72 +- 0.01, scale 1.0 -3.60 +- 0.68.
Differs: C4/en instead of its de-duplicated successor; 32 experts and 3500 steps are this project's choice,
the paper says early in training; the router keeps its own N(0, 0.02).

  stmoe train switch/init:scale=1.0 --config.seed=1
  stmoe train switch/init:smoke                       laptop, about a minute
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.switch import paper
from stmoe.configs.switch import recipe


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, scale=0.1, experts=32)
  c = recipe.pretraining(paper.SIZES['base'], args.experts, 3500, init_scale=args.scale)
  return common.smoke(c) if args.smoke else c.lock()
