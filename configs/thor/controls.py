r"""What of THOR is the experts, what the two passes: five models of equal active FLOPs per token.

Taming Sparsely Activated Transformer with Stochastic Experts (arXiv:2110.04260), its comparison with
Transformer and Switch, and two controls: random experts without consistency, and a dense model with the
consistency between two dropout masks (R-Drop, arXiv:2106.14448). Expected (paper.py, unverified): Switch
equals the Transformer to 0.5 BLEU, THOR is 2 to 3 above both.
Differs: as thor/iwslt. A step of two passes costs two steps of one: `stmoe compare` gives equal FLOPs.

  stmoe train thor/controls:method=r_drop --config.data.files=train.de,train.en,valid.de,valid.en
  stmoe compare thor/controls --config.data.files=train.de,train.en,valid.de,valid.en
  stmoe compare thor/controls:smoke                   laptop, a few minutes
  method = thor | random | switch | dense | r_drop
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.thor import paper
from stmoe.configs.thor import recipe

# What `stmoe compare thor/controls` compares.
METHODS = tuple(f'method={method}' for method in recipe.CONTROLS)
VARIANTS = ('method=switch', 'method=r_drop')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='random')
  common.choose('method', args.method, recipe.CONTROLS)
  c = recipe.translation(paper.SIZES['iwslt'], 'pairs', vocab=10_000, steps=40_000, control=args.method)
  return recipe.smoke(c) if args.smoke else c.lock()
