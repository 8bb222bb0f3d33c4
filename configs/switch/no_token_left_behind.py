r"""No token left behind: overflowing tokens try their next choices.

Switch Transformers (arXiv:2101.03961), appendix B. Expected: no gain over Switch (no figure is printed).
Differs: C4/en instead of its de-duplicated successor.

  stmoe train switch/no_token_left_behind:rounds=4
  stmoe train switch/no_token_left_behind:smoke       laptop, about a minute
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.switch import paper
from stmoe.configs.switch import recipe


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, rounds=4, experts=128)
  c = recipe.pretraining(paper.SIZES['base'], args.experts, paper.OPTIM['ablation_steps'],
                         router=dict(name='ntlb', num_rounds=args.rounds, jitter=paper.JITTER))
  return common.smoke(c) if args.smoke else c.lock()
