r"""Capacity factors 2, 1 and 0.5 of expert choice: experts per token on average.

Mixture-of-Experts with Expert Choice Routing (arXiv:2202.09368), capacity study on 0.1B with 64
experts. Expected: the loss grows as c falls from 2 over 1 to 0.5, and even 0.5 stays below top-1.
Differs: the encoder of T5 1.1 base on C4 instead of a decoder, which leaks (see expert_choice/sizes).

  stmoe train expert_choice/capacity:c=0.5
  stmoe train expert_choice/capacity:smoke            laptop, about a minute
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.expert_choice import recipe

# Arguments beside '' and 'smoke': an argument for each other path through this file.
VARIANTS = ('c=0.5',)


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, c=2.0)
  c = recipe.pretraining('base', 64, steps=100_000, capacity_factor=(args.c, args.c))
  return common.smoke(c) if args.smoke else c.lock()
