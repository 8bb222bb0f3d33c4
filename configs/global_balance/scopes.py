r"""One balance loss of four scopes: a group of tokens, a sequence, a microbatch, the global batch.

Global-batch load balancing (arXiv:2501.11873). Expected: the wider the scope, the lower the loss and the more
experts specialise: about -0.1 of perplexity, +2 points on benchmarks (paper.REPORTED, of users' threads); the
load of a sequence is less even, that of a step as even.
Differs: the paper's models, data and coefficient are not at hand: this is DeepSeekMoE's validation model with
its optimizer, in 8 microbatches; counts of a step are a running mean over them (routers/wrappers/balance.py).

  stmoe train global_balance/scopes --workdir runs/global
  stmoe train global_balance/scopes:scope=sequence
  stmoe train global_balance/scopes:scores=sigmoid     of sigmoids over their sum
  stmoe train global_balance/scopes:smoke              laptop, about a minute
  scope = global | microbatch | sequence | group; scores = softmax | sigmoid
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.deepseek_moe import paper as deepseek
from stmoe.configs.deepseek_moe import recipe

SIZE, RUN = deepseek.SIZES['validation'], deepseek.RUNS['validation']
SCOPES = ('global', 'microbatch', 'sequence', 'group')
INNER = dict(softmax=dict(name='deepseek_moe'), sigmoid=dict(name='deepseek_v3', rate=0.0))
VARIANTS = ('scope=microbatch', 'scope=sequence', 'scope=group', 'scores=sigmoid')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, scope='global', scores='softmax')
  inner = common.choose('scores', args.scores, INNER)
  common.choose('scope', args.scope, dict.fromkeys(SCOPES))
  c = recipe.pretraining(SIZE, RUN, inner | dict(k=SIZE['k']), dict(
      balance=(deepseek.LOSSES['validation'][0], 'sum'), device=(0.0, 'mean'), communication=(0.0, 'mean')))
  routed = common.sparse(c.blocks.m)
  routed.group_size = 4 * RUN['length'] if args.scope == 'group' else None         # groups of four rows
  routed.router = dict(name='balance', scope=args.scope, scores=args.scores, inner=routed.router.to_dict())
  c.train.microbatches = 8
  if args.smoke:
    c = recipe.smoke(c)
    with c.unlocked():
      c.train.microbatches = 2
  return c.lock()
