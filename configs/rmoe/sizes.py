r"""Layerwise recurrent routers at 0.91B parameters: 24 sparse layers of width 1280, 16 experts, top-4.

RMoE (arXiv:2408.06793), its pre-training setting (paper.py, unverified). Expected: clearly better than plain
routers of the same experts; 0.91B parameters, of which the routers add 3.5M.
Differs: C4/en; heads, width of experts, vocabulary, optimizer, rate, batch and steps are not given and are
this project's. A GRU of width 128 and a projection in each layer make 3.6M more than plain routers.

  stmoe train rmoe/sizes
  stmoe train rmoe/sizes:method=plain
  stmoe train rmoe/sizes:smoke                        laptop, about a minute
  method = on | off (not passed on) | stopped (no gradient) | rnn | lstm | linear (no cell) | unpooled | plain
"""

from stmoe.configs import arguments
from stmoe.configs.rmoe import recipe

VARIANTS = ('method=off', 'method=plain')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='on')
  c = recipe.pretraining('large', args.method, task='c4')
  return recipe.smoke(c) if args.smoke else c.lock()
