r"""Switch-Base on C4 with 0 (dense) to 256 experts: quality by the number of experts.

Switch Transformers (arXiv:2101.03961), the expert-count study of section 3; model: the released one
(ReLU experts of width 3072, tied head), whose parameters match the printed number.

Expected negative log perplexity after 100k steps (paper.EXPERT_SCALING): dense -1.636, 16 experts
-1.505, 32 -1.474, 64 -1.444, 128 -1.432, 256 -1.427; 64 experts reach the dense model's 450k steps in 60k.
Differs: C4/en instead of its de-duplicated successor; groups as in configs/t5.py.

  stmoe train switch/base_c4 --workdir runs/switch_base
  stmoe train switch/base_c4:experts=64
  stmoe train switch/base_c4:smoke                    laptop, about a minute
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.switch import paper
from stmoe.configs.switch import recipe

# Arguments beside '' and 'smoke': an argument for each other path through this file.
VARIANTS = ('experts=0',)


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, experts=128)
  c = recipe.pretraining(paper.RELEASED['base'], args.experts, paper.OPTIM['ablation_steps'])
  return common.smoke(c) if args.smoke else c.lock()
