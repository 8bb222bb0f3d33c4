r"""Switch-Base, -Large, -XXL and -C as printed: pre-training on C4, 550k steps.

Switch Transformers (arXiv:2101.03961), table 9. Expected parameters 7B, 26B, 395B, 1571B; the
printed dimensions of Large make 27.2B (see paper.py). Fine-tuned results: paper.REPORTED.
Differs: C4/en instead of its de-duplicated successor; groups as in configs/t5.py.

  stmoe train switch/sizes:size=large --config.mesh.model=4
  stmoe train switch/sizes:size=c,smoke               laptop, about a minute
  size = base | large | xxl | c
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.switch import paper
from stmoe.configs.switch import recipe

# Arguments beside '' and 'smoke': an argument for each other path through this file.
VARIANTS = ('size=large', 'size=xxl', 'size=c')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, size='base')
  size = common.choose('size', args.size, paper.SIZES)
  c = recipe.pretraining(size, size['experts'], paper.OPTIM['steps'])
  return common.smoke(c) if args.smoke else c.lock()
