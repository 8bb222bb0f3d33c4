r"""An extra dense layer after, before or without each sparse layer.

ST-MoE (arXiv:2202.08906), additional dense layers: 32 experts, 100k steps. Expected (paper.EXTRA_FFN):
none -1.383, after or before -1.369.
Differs: C4/en. The row of randomly placed layers (-1.376) is left out: where they stand is not stated.

  stmoe train st_moe/extra_ffn:extra=none
  stmoe train st_moe/extra_ffn:extra=before,smoke     laptop, about a minute
  extra = after | before | none
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.st_moe import paper
from stmoe.configs.st_moe import recipe

# Arguments beside '' and 'smoke': an argument for each other path through this file.
VARIANTS = ('extra=none', 'extra=before')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, extra='after')
  c = recipe.pretraining(paper.SIZES['l'], paper.OPTIM['ablation_steps'], extra=args.extra)
  return common.smoke(c) if args.smoke else c.lock()
