r"""CompeteSMoE in the language model of its sweeps: experts compete in 7 % of the steps of a layer.

CompeteSMoE (arXiv:2402.02526, arXiv:2505.13380), the code for language models. Expected: better than plain
top-k at equal steps; no figures are at hand. A layer that competes runs all of its 64 experts. On average
experts then cost 1.49 times as much, and 1.56 times in the code, which runs winners again.
Differs: C4/en instead of SlimPajama; RMSNorm; initial values of attention and routers are this project's;
outputs of a competition are computed once; the schedule follows from the configuration's seed.

  stmoe train compete_smoe/language --workdir runs/compete_smoe
  stmoe train compete_smoe/language:rate=0.0          the same router, never taught
  stmoe train compete_smoe/language:taught=all        without the further weight of winners
  stmoe train compete_smoe/language:losses=vision     coefficients of the code for vision and language
  stmoe train compete_smoe/language:smoke             laptop, about a minute
  taught = all | winners | hybrid | tribrid; losses = language | vision
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.compete_smoe import paper
from stmoe.configs.libmoe import paper as libmoe
from stmoe.configs.libmoe import recipe

VARIANTS = ('rate=0.0', 'taught=all', 'taught=tribrid', 'losses=vision')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, rate=paper.SCHEDULE['rate'], taught=paper.TAUGHT,
                         losses='language')
  fields = dict(paper.SCHEDULE, rate=args.rate, num_layers=libmoe.SIZE['layers'], total_steps=1)
  block = recipe.sparse('compete_smoe', **fields)
  block.update(layer='compete_smoe', taught=args.taught, theta=paper.THETA)
  weights = common.choose('losses', args.losses, dict(language=paper.LANGUAGE, vision=paper.VISION))
  c = recipe.language(block, {name: weights.get(name, 0.0) for name in paper.LOSSES})
  return recipe.smoke(c) if args.smoke else c.lock()
