r"""ST-MoE-32B, pre-training on C4, laid out for 512 chips: experts over 64, every matrix over 8.

ST-MoE (arXiv:2202.08906), table 11. Expected parameters 269B; fine-tuned scores: paper.REPORTED.
Differs: as `st_moe/sizes:size=st_32b`, whose science this is. Here every matrix is cut over 8 chips, 64 such
groups hold an expert each, and rows travel by explicit all-to-all. experiments/compile says whether it fits
and what it moves.

  stmoe compile st_moe/32b --topology v5p:8x8x8
  stmoe train st_moe/32b:smoke                        laptop, about a minute
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.st_moe import paper
from stmoe.configs.st_moe import recipe


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False)
  c = recipe.pretraining(paper.SIZES['st_32b'], paper.OPTIM['steps_32b'])
  c.mesh.update(data=1, expert=-1, model=8)                          # 64 groups of 512 chips
  for block in (c.blocks.m, c.blocks.n):
    block.executor = 'all_to_all'
  return common.smoke(c) if args.smoke else c.lock()
