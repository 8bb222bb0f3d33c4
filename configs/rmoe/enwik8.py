r"""Layerwise recurrent routers at 36M parameters on Enwiki8: 8 sparse layers of width 352, 16 experts, top-2.

RMoE (arXiv:2408.06793), its small setting (paper.py, unverified). Expected bits per character: 1.141; with
states that are not passed on 1.150, without the gradient through them 1.159 (paper.REPORTED). A plain router
is not below the one whose states are not passed on.
Differs: give Enwiki8, or any text, as data.files; heads, width of experts, optimizer, rate, batch and steps
are not given and are this project's; balance is counted over a routing group, in all layers, not a batch.

  stmoe train rmoe/enwik8 --config.data.files=enwik8.txt
  stmoe train rmoe/enwik8:method=off --config.data.files=enwik8.txt
  stmoe train rmoe/enwik8:smoke                      laptop, about a minute
  method = on | off (not passed on) | stopped (no gradient) | rnn | lstm | linear (no cell) | unpooled | plain
"""

from stmoe.configs import arguments
from stmoe.configs.rmoe import recipe

VARIANTS = ('method=off', 'method=stopped', 'method=rnn', 'method=lstm', 'method=linear', 'method=unpooled',
            'method=plain')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='on')
  c = recipe.pretraining('small', args.method, task='text')
  return recipe.smoke(c) if args.smoke else c.lock()
