r"""MomentumSMoE-small on WikiText-103: 3 sparse layers of width 128.

MomentumSMoE (arXiv:2410.14574), the released scripts (paper.SIZES).
Expected: momentum helps little or not at all at this depth; the paper's small model is recalled to be
slightly worse with it than without (unverified).
Differs: give WikiText-103's files, or any text, as data.files; pieces of SentencePiece instead of all its
words, so perplexities do not compare, bits per byte do; rows do not see the row before; one microbatch;
normal or truncated instead of uniform initial weights, of the same variance. There is no script for Adam at
this size; medium's values are taken.
Robust momentum: the published code has no such method; L, c and rho are this project's.

  stmoe train momentum_smoe/small:method=momentum --config.data.files=wiki.train.tokens
  stmoe train momentum_smoe/small:method=adam,smoke        laptop, about a minute
  method = smoe | momentum | adam | robust
"""

from stmoe.configs import arguments
from stmoe.configs.momentum_smoe import recipe

VARIANTS = ('method=smoe', 'method=adam', 'method=robust')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='momentum')
  c = recipe.language('small', args.method)
  return recipe.smoke(c) if args.smoke else c.lock()
