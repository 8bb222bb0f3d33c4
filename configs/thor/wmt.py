r"""THOR on WMT'14: Transformer-big with four experts in every second layer.

Taming Sparsely Activated Transformer with Stochastic Experts (arXiv:2110.04260), the rich-resource pairs.
Expected: THOR above Transformer and Switch; their BLEU is not at hand (paper.REPORTED).
Differs: as thor/iwslt. No command is released for these pairs: optimizer, batch and alpha are IWSLT'14's.
Four experts are recalled (unverified); 32,000 pieces and 100k steps are this project's choice.

  stmoe train thor/wmt:pair=en_de --config.mesh.expert=4
  stmoe train thor/wmt:pair=en_fr,smoke               laptop, about a minute
  pair = en_de | en_fr, of TensorFlow Datasets in $TFDS_DATA_DIR
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.thor import paper
from stmoe.configs.thor import recipe

VARIANTS = ('pair=en_fr',)
PAIRS = dict(en_de='wmt_en_de', en_fr='wmt_en_fr')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, pair='en_de')
  size = paper.SIZES[common.choose('pair', args.pair, PAIRS)]
  c = recipe.translation(size, f'wmt14_{args.pair}', vocab=32_000, steps=100_000)
  return recipe.smoke(c) if args.smoke else c.lock()
