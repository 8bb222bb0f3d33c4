r"""ProMoE with token choice or expert choice, and DiT, on 1,438 handwritten digits, in 4 minutes on 2 cores.

The file trains no experiment of the paper (arXiv:2510.24711), which prints no such result. Use the file to
see which experts a noise level has, and to try a router. Digits of 8 x 8 pixels, patches of 2 x 2.

  stmoe train promoe/digits --workdir runs/promoe
  stmoe sample runs/promoe --num 64 --steps 50 --seed 0     a grid of digits, a score, a figure of experts
  stmoe sample runs/promoe --guidance 1.5
  stmoe train promoe/digits:method=expert_choice            any of: dit | promoe | expert_choice
  stmoe train promoe/digits:contrastive=0.0                 without the routing contrastive loss
  stmoe train promoe/digits:smoke                           half a minute

Expected (this project's, no published figure; one seed): loss of held-out noise at fixed levels 0.392. Of 100
samples in 50 steps a classifier takes 95 for their class, of held-out images 99 in 100.
Time: 3.3 minutes, an estimate. The start and 200 of the 3,000 steps took 43 s, a step at last 53 ms.
Differs: sizes, the averages of weights and the schedule of the rate are this project's choice. The
contrastive loss is of groups of 8 images, so that eight devices can share a batch of 64.
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs import dit
from stmoe.configs.promoe import blocks
from stmoe.configs.promoe import paper

VARIANTS = ('method=dit', 'method=expert_choice', 'contrastive=0.0')
TOKENS = 16                            # of an image
IMAGES = 8                             # of a group, in which the contrastive loss has means


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='promoe', contrastive=paper.ROUTING['contrastive'])
  c, size = common.config(), dit.SMALL
  dit.digits(c, (), dict(name='flow'), 'logit_normal')
  pair = blocks.put(c, args.method, size['d_model'], d_ff=2 * size['d_model'], experts=4,
                    group_size=IMAGES * TOKENS)
  c.model.layers = ((pair, size['layers'] // 2),)
  c.eval.batch_size = 64
  if args.method != 'dit':
    c.losses.contrastive = (args.contrastive, 'sum')
  return common.smoke_noise(c) if args.smoke else c.lock()
