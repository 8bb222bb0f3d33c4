r"""Which hash: of the token, of other tokens, of the position; balanced, random, by clusters, against them.

Hash Layers (arXiv:2106.04426). Expected there (perplexity on Reddit, one layer of 64 experts, valid;
paper.KINDS): balanced 23.16, dispersed 23.17, random 23.22, clustered 23.90, previous 24.16, bigram 24.19,
position 25.07 (dense: 24.90), future 1.97.
Claims to check: balanced, random and dispersed are equal. Clusters are worse, other tokens still worse. The
position is no better than dense. The future token leaks, so its loss (and only its loss) is near zero.
Differs: Reddit is not public; the stand-in is C4/en (configs/hash/recipe.py says what else). p of the bigram
(1,000,003) and the clusters behind dispersed (V / 64) are this project's. The predicted future token (25.02,
unverified), which needs a second model, is left out. fresh, an expert by chance, is added.

  stmoe tables hash/kinds:kind=balanced --kind balanced -o balanced.npz
  stmoe train hash/kinds:kind=balanced,table=balanced.npz
  stmoe tables hash/kinds --kind dispersed --embeddings runs/hash/sizes_size_dense -o dispersed.npz
  stmoe train hash/kinds:kind=position,smoke          laptop, about a minute
  kind = random | balanced | dispersed | clustered | previous | bigram | position | future | fresh
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.hash import paper
from stmoe.configs.hash import recipe

VARIANTS = ('kind=balanced', 'kind=bigram', 'kind=position', 'kind=future', 'kind=fresh')
KINDS = {kind: {} for kind in (*paper.KINDS, 'fresh')} | dict(future=dict(allow_causal=True))


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, kind='random', table='')
  fields = common.choose('kind', args.kind, KINDS)
  c = recipe.pretraining(paper.WIDTHS, (paper.SPARSE_LAYER,),
                         recipe.hashed(64, kind=args.kind, table=args.table, **fields))
  return common.smoke(c) if args.smoke else c.lock()
