r"""The six sparse models of GShard, 12.5B to 600B parameters, and its dense 96-layer model.

GShard (arXiv:2006.16668), section 4. Expected there (mean BLEU of 100 languages into English): 600B 44.3,
200B 41.3, 150B 43.7, 50B 40.0, 37B 39.0, 12.5B 36.7, dense 36.9.
Differs: the data is not public; the stand-in is span corruption of C4/en (task c4). So no BLEU is to be
compared, only loss and routing. The rest is in configs/gshard/recipe.py. Printed parameters against ours:
configs/gshard/paper.py.

  stmoe train gshard/sizes:size=12.5b
  stmoe train gshard/sizes:size=600b,smoke            laptop, about a minute
  size = 600b | 200b | 150b | 50b | 37b | 12.5b | dense; widths (of dense) = printed | sparse
"""

import math

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.gshard import paper
from stmoe.configs.gshard import recipe

# Arguments beside '' and 'smoke': an argument for each other path through this file.
VARIANTS = ('size=600b', 'size=150b', 'size=37b', 'size=dense', 'size=dense,widths=sparse')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, size='12.5b', widths='printed', steps=250_000)
  size = common.choose('size', args.size, dict(paper.SIZES, dense=paper.DENSE))
  widths = common.choose('widths', args.widths, paper.DENSE_WIDTHS) if args.size == 'dense' else paper.WIDTHS
  batch = 2**round(math.log2(size['tokens_per_batch']))
  c = recipe.pretraining(widths, size['layers'], size.get('experts', 0), batch, args.steps)
  return common.smoke(c) if args.smoke else c.lock()
