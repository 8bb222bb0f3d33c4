r"""Growing, falling and constant numbers of active experts.

Sparse MoE as the New Dropout (arXiv:2303.01610), the study of its schedule; all modes of the released code.
Expected: growing k is best; the figures are not at hand.
Differs: as smoe_dropout/enwik8; multi_step has the reference's stairs 1, 2, 4, 8, 16.

  stmoe train smoe_dropout/schedules:schedule=cosine_increase,k_min=2 --config.data.files=enwik8
  stmoe train smoe_dropout/schedules:schedule=linear_decrease,smoke   laptop, about a minute
  schedule = constant | {linear,cosine,multi_step}_{increase,decrease} | exp_increase
"""

from stmoe.configs import arguments
from stmoe.configs.smoe_dropout import paper
from stmoe.configs.smoe_dropout import recipe

VARIANTS = ('schedule=multi_step_increase', 'schedule=constant')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, schedule='linear_decrease', k_min=1)
  router = recipe.router(schedule=args.schedule, k_min=args.k_min)
  c = recipe.characters((('m', paper.MODEL['layers']),), dict(m=recipe.experts(router)))
  return recipe.smoke(c) if args.smoke else c.lock()
