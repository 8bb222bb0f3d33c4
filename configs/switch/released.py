r"""The models of the released Switch checkpoints: ReLU experts and tied head in Base and Large.

Switch Transformers (arXiv:2101.03961), released configurations (paper.RELEASED). Expected
parameters: 395B and 1571B for XXL and C; with 128 experts Base has 7.4B and Large 26B.
Differs: C4/en instead of its de-duplicated successor; groups as in configs/t5.py; with input
jitter, which the released configurations do not have: --config.blocks.m.router.jitter=0
--config.blocks.n.router.jitter=0 takes it away.

  stmoe train switch/released:size=base,experts=8
  stmoe train switch/released:size=xxl,smoke          laptop, about a minute
  size = base | large | xxl | c; experts of Base: 8, 16, 32, 64, 128, 256
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.switch import paper
from stmoe.configs.switch import recipe

# Arguments beside '' and 'smoke': an argument for each other path through this file.
VARIANTS = ('size=large', 'size=xxl', 'size=c', 'experts=8')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, size='base', experts=0)
  size = common.choose('size', args.size, paper.RELEASED)
  c = recipe.pretraining(size, args.experts or size['experts'], paper.OPTIM['steps'])
  return common.smoke(c) if args.smoke else c.lock()
