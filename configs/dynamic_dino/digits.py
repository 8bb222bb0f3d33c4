r"""Dynamic-DINO's layer in a ViT on handwritten digits: copies of a dense layer in slices, in minutes.

Dynamic-DINO (arXiv:2507.17436) makes the layer of a trained detector's decoder; detection is no part of this
project. The backbone, data and schedule are those of `vmoe/digits`: 8 x 8 pixels, patches of 2 x 2. With
N = 4 copies and k = 2 slices of each there are 8 experts of half the dense width, of which a patch has 2.

  stmoe train dynamic_dino/digits --workdir runs/slices        the layer from random numbers
  stmoe train dynamic_dino/digits:gates=ungated                only the balance loss trains the router
  stmoe train dynamic_dino/digits:smoke                        half a minute
  the method itself, from a trained dense run, which it computes exactly at first:
    stmoe train vmoe/digits:method=vit --workdir runs/vit
    stmoe factorise runs/vit dynamic_dino:copies=4,k=2 --workdir runs/moe
    stmoe train runs/moe

Expected: at step 0 of runs/moe the accuracy of runs/vit, later at least that of dense fine-tuning. For a ViT
the paper prints no result; in its detectors the start was worth 0.6 AP (paper.INITIALISATION_AP, a note).
Differs: sizes, data and schedule; every second layer of the four is sparse.
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.dynamic_dino import paper
from stmoe.configs.vmoe import digits

VARIANTS = ('gates=ungated', 'copies=2', 'k=4')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, copies=4, k=paper.K, gates='scaled')
  c = digits.get_config('smoke' if args.smoke else '').unlock()
  d_ff = c.blocks.d.d_ff
  common.whole('copies', args.copies)
  common.whole('k', args.k, 1, d_ff)
  c.blocks.m.router = dict(name='dynamic_dino', num_experts=args.copies * args.k, k=args.k, gates=args.gates)
  c.blocks.m.experts.update(d_ff=d_ff // args.k)
  c.losses = dict(balance=paper.BALANCE)
  return c.lock()
