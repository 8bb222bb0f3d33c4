r"""Selective precision: everything in bfloat16 but the router, against all in float32.

Switch Transformers (arXiv:2101.03961), section 2.4. Expected early in training (paper.PRECISION):
float32 -1.718 at 1160 examples/s, selective -1.716 at 1390. The row that diverged (-3.780, the
router in bfloat16 as well) cannot be run: routers here always compute in float32.
Differs: C4/en instead of its de-duplicated successor; 32 experts are this project's
choice, the row's number is unknown.

  stmoe train switch/precision:dtype=float32
  stmoe train switch/precision:smoke                  laptop, about a minute
  dtype = bfloat16 | float32
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.switch import paper
from stmoe.configs.switch import recipe

# Arguments beside '' and 'smoke': an argument for each other path through this file.
VARIANTS = ('dtype=float32',)


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, dtype='bfloat16', experts=32)
  c = recipe.pretraining(paper.SIZES['base'], args.experts, paper.OPTIM['ablation_steps'])
  c.model.dtype = args.dtype
  return common.smoke(c) if args.smoke else c.lock()
