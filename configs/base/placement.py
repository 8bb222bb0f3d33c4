r"""Where BASE layers stand, and how many: one in the middle, two or three spread, one on top.

BASE Layers (arXiv:2103.16716), section 5: N layers after blocks floor(i * 24 / (N+1)), each with experts of
10 // N sublayers, so that all have near 44B parameters and equal FLOPs.
Expected: the paper prints no table of losses; its curves are close, three layers best. Speed on 128 GPUs
(paper.SPEED): one layer 545k tokens/s, two 475k.
Training loss is under balanced assignment, which sees later tokens (allow_causal=True): no
language-modelling score. Evaluation is greedy and causal.
Differs: as base/sizes. fairseq inserts into the growing list, so its three layers stand after blocks 6,
11 and 16; `fairseq` does the same.

  stmoe train base/placement:place=three
  stmoe train base/placement:place=three,fairseq
  stmoe train base/placement:smoke                    laptop, about a minute
  place = middle | two | three | top
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.base import paper
from stmoe.configs.base import recipe

VARIANTS = ('place=middle', 'place=two', 'place=three,fairseq', 'place=top')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, place='three', fairseq=False)
  place, size = common.choose('place', args.place, paper.PLACEMENTS), paper.SIZES['standard']
  c = recipe.pretraining(paper.BACKBONE, size['layers'], size['sublayers'] // place['layers'],
                         num_base=place['layers'], top=place['top'], fairseq=args.fairseq)
  return recipe.smoke(c) if args.smoke else c.lock()
