r"""SMoE-Dropout in deeper models, of which only the first four layers are sparse.

Sparse MoE as the New Dropout (arXiv:2303.01610), figure 5, as its scripts have it: with 8 and 12 layers all
further layers are dense and of width 512. Expected: the paper's figure is not at hand.
Differs: as smoe_dropout/enwik8.

  stmoe train smoe_dropout/depth:layers=12 --config.data.files=enwik8
  stmoe train smoe_dropout/depth:smoke                laptop, about a minute
  layers = 4 | 8 | 12
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.smoe_dropout import paper
from stmoe.configs.smoe_dropout import recipe

VARIANTS = ('layers=12',)


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, layers=8)
  common.choose('layers', args.layers, dict.fromkeys(paper.DEPTHS))
  sparse = paper.MODEL['layers']
  dense = args.layers - sparse
  blocks = dict(m=recipe.experts(recipe.router()), d=recipe.dense(paper.DEPTH_D_FF))
  c = recipe.characters((('m', sparse), ('d', dense)) if dense else (('m', sparse),), blocks)
  return recipe.smoke(c) if args.smoke else c.lock()
