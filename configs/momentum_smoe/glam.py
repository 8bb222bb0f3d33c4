r"""MomentumGLaM-medium on WikiText-103: 6 sparse and 6 dense blocks in turn; momentum skips dense blocks.

MomentumSMoE (arXiv:2410.14574), the released scripts (paper.SIZES); the learning rate is a tenth of the
other models'.
Expected perplexity of words (paper.REPORTED, unverified), valid / test: GLaM 36.37 / 37.71, MomentumGLaM
33.87 / 35.29, AdamGLaM 32.99 / 34.32.
Differs: as momentum_smoe/medium; dropout inside dense layers has one mask a sequence.

  stmoe train momentum_smoe/glam:method=momentum --config.data.files=wiki.train.tokens
  stmoe train momentum_smoe/glam:smoke                  laptop, about a minute
  method = smoe | momentum | adam | robust
"""

from stmoe.configs import arguments
from stmoe.configs.momentum_smoe import recipe

VARIANTS = ('method=smoe', 'method=adam', 'method=robust')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='momentum')
  c = recipe.language('glam', args.method, dense=True)
  return recipe.smoke(c) if args.smoke else c.lock()
