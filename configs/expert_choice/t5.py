r"""Expert choice in the encoder of T5 1.1, top-2 token choice in its decoder: nothing sees the future.

Mixture-of-Experts with Expert Choice Routing (arXiv:2202.09368), flaxformer's encoder-decoder configurations
(experts_choose_*.gin): capacity factor 1, groups of 4096 tokens, 32 experts in small, 64 in base and
large. The paper prints no result for them. Experts of xl and xxl are this project's choice.
Differs: groups as in configs/t5.py.

  stmoe train expert_choice/t5:size=base
  stmoe train expert_choice/t5:smoke                  laptop, about a minute
  size = small | base | large | xl | xxl
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.expert_choice import paper
from stmoe.configs.expert_choice import recipe

# Arguments beside '' and 'smoke': an argument for each other path through this file.
VARIANTS = ('size=small', 'size=xxl')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, size='base')
  experts = common.choose('size', args.size, paper.FLAXFORMER)['experts'] or 64
  c = recipe.pretraining(args.size, experts, steps=500_000)
  return common.smoke(c) if args.smoke else c.lock()
