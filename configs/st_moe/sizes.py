r"""ST-MoE-L and ST-MoE-32B, their dense yardstick, and the released base and XL: pre-training on C4.

ST-MoE (arXiv:2202.08906), table 11. Expected parameters: L 4.1B, 32B 269B, Dense-L 0.8B. Expected
fine-tuned scores: paper.REPORTED.
Differs: 32B was trained on a private mixture (paper.MIXTURE), of which C4/en is the public part. The routers'
losses are averaged over layers (flaxformer); the paper does not say. Experts have no multiplicative bias, as
in flaxformer: st_moe/expert_bias has the paper's.

  stmoe train st_moe/sizes:size=l
  stmoe train st_moe/sizes:size=st_32b,smoke          laptop, about a minute
  size = l | st_32b | dense_l | base | xl
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.st_moe import paper
from stmoe.configs.st_moe import recipe

# Arguments beside '' and 'smoke': an argument for each other path through this file.
VARIANTS = ('size=dense_l', 'size=st_32b', 'size=base', 'size=xl')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, size='l')
  size = common.choose('size', args.size, paper.SIZES)
  steps = paper.OPTIM['steps_32b'] if args.size == 'st_32b' else paper.OPTIM['steps']
  c = recipe.pretraining(size, steps)
  return common.smoke(c) if args.smoke else c.lock()
