r"""Switch-DiT, Denoising Task Routing and DiT on 1,438 real handwritten digits, in 3 minutes on two cores.

The file trains no experiment of the paper (arXiv:2403.09176), which prints no such result. Use the file to
see which experts a noise level has, and to try a block. Digits of 8 x 8 pixels, patches of 2 x 2.

  stmoe train switch_dit/digits --workdir runs/digits
  stmoe sample runs/digits --num 64 --steps 50 --seed 0    a grid of digits, a score, a figure of experts
  stmoe sample runs/digits --sampler ddim --steps 20 --guidance 1.5
  stmoe train switch_dit/digits:method=dit                 any of: dit | dtr | switch_dit
  stmoe train switch_dit/digits:prior=0.0                  without the prior: experts share no noise levels
  stmoe train switch_dit/digits:labels=False               a model without classes
  stmoe train switch_dit/digits:objective=flow             rectified flow in place of DDPM
  stmoe train switch_dit/digits:smoke                      half a minute

Expected (this project's, no published figure; one seed): loss of held-out noise at fixed levels 0.089. Of 100
samples in 100 steps a classifier takes 80 for their class, of held-out images 99 in 100.
Time: 2.7 minutes, an estimate. The start and 200 of the 3,000 steps took 32 s, a step at last 44 ms.
Differs: sizes, the averages of weights and the schedule of the rate are this project's choice.
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs import dit
from stmoe.configs.switch_dit import blocks
from stmoe.configs.switch_dit import paper

VARIANTS = ('method=dit', 'method=dtr', 'prior=0.0', 'labels=False', 'objective=flow')
# objective -> target, and how levels of noise are drawn.
OBJECTIVES = dict(ddpm=(dict(name='ddpm', **paper.PROCESS), 'uniform'),
                  flow=(dict(name='flow'), 'logit_normal'))


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='switch_dit', prior=paper.ROUTING['prior'], labels=True,
                         objective='ddpm')
  c = common.config()
  dit.digits(c, (('m', dit.SMALL['layers']),), *common.choose('objective', args.objective, OBJECTIVES))
  blocks.put(c, args.method, dit.SMALL['d_model'], args.prior)
  if not args.labels:
    c.model.vocab_size, c.data.label_dropout = 0, 1.0
  return common.smoke_noise(c) if args.smoke else c.lock()
