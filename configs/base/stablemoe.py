r"""BASE in the sizes of a public code that runs it beside Switch and Hash layers.

The fork of fairseq of StableMoE (arXiv:2204.08396), its configurations of BASE (arXiv:2103.16716): one layer
in the middle of 12 or 24 blocks, 16 experts of 3 or 6 sublayers, 60,000 steps of 524k tokens.
Expected: the configurations print no losses.
Training loss is under balanced assignment, which sees later tokens (allow_causal=True): no
language-modelling score. Evaluation is greedy and causal.
Differs: as base/sizes; learned positions there; the number of experts of medium and large is not given.

  stmoe train base/stablemoe:size=small
  stmoe train base/stablemoe:smoke                    laptop, about a minute
  size = small | medium | large; experts = 16
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.base import paper
from stmoe.configs.base import recipe

VARIANTS = ('size=medium', 'size=large')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, size='small', experts=16)
  size = common.choose('size', args.size, paper.STABLEMOE)
  c = recipe.pretraining(size, size['layers'], size['sublayers'], args.experts, optim=paper.STABLEMOE_OPTIM)
  return recipe.smoke(c) if args.smoke else c.lock()
