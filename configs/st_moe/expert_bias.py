r"""A learned multiplicative bias on the experts' gated product, against none.

ST-MoE (arXiv:2202.08906), multiplicative bias: 32 experts, 100k steps. Expected (paper.EXPERT_BIAS): with
-1.361, without -1.369. Differs: C4/en. The additive bias (-1.371, no gain) is left out.

  stmoe train st_moe/expert_bias:bias=False
  stmoe train st_moe/expert_bias:smoke                laptop, about a minute
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.st_moe import paper
from stmoe.configs.st_moe import recipe

# Arguments beside '' and 'smoke': an argument for each other path through this file.
VARIANTS = ('bias=False',)


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, bias=True)
  c = recipe.pretraining(paper.SIZES['l'], paper.OPTIM['ablation_steps'],
                         bank=dict(multiplicative_bias=args.bias))
  return common.smoke(c) if args.smoke else c.lock()
