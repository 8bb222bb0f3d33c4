r"""MomentumSMoE-medium on WikiText-103: 6 sparse layers of width 352, with heavy ball, Adam or neither.

MomentumSMoE (arXiv:2410.14574), the released scripts (paper.SIZES).
Expected perplexity of words (paper.REPORTED, unverified), valid / test: SMoE 33.76 / 35.55, MomentumSMoE
32.29 / 33.46, AdamSMoE 31.59 / 33.25.
Differs: give WikiText-103's files, or any text, as data.files; pieces of SentencePiece instead of all its
words, so perplexities do not compare, bits per byte do; rows do not see the row before; one microbatch;
normal or truncated instead of uniform initial weights, of the same variance.
Robust momentum: the published code has no such method; L, c and rho are this project's.

  stmoe train momentum_smoe/medium:method=momentum --config.data.files=wiki.train.tokens
  stmoe train momentum_smoe/medium:method=adam,smoke        laptop, about a minute
  method = smoe | momentum | adam | robust
"""

from stmoe.configs import arguments
from stmoe.configs.momentum_smoe import recipe

VARIANTS = ('method=smoe', 'method=adam', 'method=robust')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='momentum')
  c = recipe.language('medium', args.method)
  return recipe.smoke(c) if args.smoke else c.lock()
