r"""MultiHash: 1, 2, 4 or 8 hash functions, each for its part of the matrices of one layer of 64 experts.

Hash Layers (arXiv:2106.04426). Expected there: better than a single hash function in every setting, by a few
hundredths to a tenth of perplexity (unverified), at equal parameters and FLOPs.
Differs: Reddit is not public; the stand-in is C4/en (configs/hash/recipe.py says what else). The numbers of
hash functions are this project's choice, and each function has its own parts (unverified).

  stmoe train hash/multihash:n=4
  stmoe train hash/multihash:n=4,smoke                laptop, about a minute
  n = a divisor of 1024
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.hash import paper
from stmoe.configs.hash import recipe

VARIANTS = ('n=1', 'n=4', 'n=8')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, n=2, experts=64)
  c = recipe.pretraining(paper.WIDTHS, (paper.SPARSE_LAYER,), recipe.multihash(args.experts, args.n))
  return common.smoke(c) if args.smoke else c.lock()
