r"""Hash, Switch and dense language models, 222M to 1.28B parameters: one sparse layer, or five.

Hash Layers (arXiv:2106.04426). Expected there (perplexity on Reddit, valid; paper.REPORTED, BY_EXPERTS):
dense 222M 24.90, 755M wider 23.32 and deeper 22.72 (unverified); with one sparse layer of 16 experts Switch
24.00 = Hash 24.00, 32: 23.79 > 23.58, 64: 23.65 > 23.16, 128: 23.52 > 22.89.
Claims to check: Hash gains over dense grow with the experts; Hash is at least as good as Switch from 32 on.
Differs: Reddit is not public; the stand-in is C4/en (configs/hash/recipe.py says what else). The dense model
has 17 layers for its verified count. The widths of the 755M models are this project's. So are the places of
the five layers (every third, from the third). The single sparse layer is number 7 of 0 to 16.

  stmoe train hash/sizes:size=1x64
  stmoe train hash/sizes:size=1x64,method=switch
  stmoe train hash/sizes:size=5x16,tables=own         another random table in every layer
  stmoe train hash/sizes:smoke                        laptop, about a minute
  size = 1x16 | 1x32 | 1x64 | 1x128 | 5x16 | dense | wider | deeper; method = hash | switch
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.hash import paper
from stmoe.configs.hash import recipe

VARIANTS = ('size=1x128', 'size=5x16', 'size=5x16,tables=own', 'size=dense', 'size=wider', 'size=deeper',
            'method=switch')
DENSE = dict(dense='base', wider='wider', deeper='deeper')
TABLES = dict(same=False, own=True)
PLACES = {1: (paper.SPARSE_LAYER,), 5: (2, 5, 8, 11, 14)}


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, size='1x64', method='hash', tables='same')
  size = common.choose('size', args.size, DENSE | paper.SIZES)
  if args.size in DENSE:
    c = recipe.pretraining(paper.DENSE[size], (), None)
    return common.smoke(c) if args.smoke else c.lock()
  own_tables = common.choose('tables', args.tables, TABLES)
  make = common.choose('method', args.method, dict(
      hash=lambda experts: recipe.hashed(experts, hash_seed_per_layer=own_tables), switch=recipe.switch))
  c = recipe.pretraining(paper.WIDTHS, PLACES[size['layers']], make(size['experts']))
  if args.method == 'switch':
    c.losses.balance = (1e-2, 'mean')
  return common.smoke(c) if args.smoke else c.lock()
