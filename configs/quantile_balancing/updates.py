r"""A bias that is set to a quantile, beside biases that take steps: perplexity and MaxVio.

Quantile balancing (kexue.fm 11619; Kimi K3) against loss-free balancing (arXiv:2408.15664). Expected:
balance within two steps, where a sign step of 1e-3 takes thousands (paper.MEASURED; the sources' own tables
are not at hand). `eval/max_vio` is the global MaxVio; `router_stats` has that of every layer by step.
Differs: the sources give no model of this size; it is that of loss_free_balancing/strategies, with softmax
gates over their sum, in all rows.

  stmoe train quantile_balancing/updates --workdir runs/quantile
  stmoe train quantile_balancing/updates:update=sign,u=0.01
  stmoe train quantile_balancing/updates:smoke               laptop, about a minute
  update = quantile | exact | scores | sign | magnitude; ema: of quantiles; u: rate of sign and magnitude

update=exact sorts, and averages over microbatches, as Megatron-LM does. The bias of update=scores is one of
scores instead of logits, as in Kimi K3.
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.deepseek_moe import paper as deepseek
from stmoe.configs.deepseek_moe import recipe
from stmoe.configs.loss_free_balancing import paper as loss_free
from stmoe.configs.loss_free_balancing import strategies
from stmoe.configs.quantile_balancing import paper

QUANTILE = dict(name='quantile_balancing', bins=paper.BINS)
STEPS = dict(name='loss_free_balancing', scores='softmax', normalize_gates=True)
# update -> router and its fields, beside ema or rate.
UPDATES = dict(quantile=QUANTILE, exact=dict(QUANTILE, bins=None), scores=dict(QUANTILE, selection='scores'),
               sign=STEPS, magnitude=dict(STEPS, rule='magnitude'))
VARIANTS = ('update=exact', 'update=scores', 'update=sign', 'update=magnitude', 'ema=0.9')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, update='quantile', ema=paper.EMA, u=loss_free.RATE)
  router = common.choose('update', args.update, UPDATES)
  moves = dict(rate=args.u) if router['name'] == 'loss_free_balancing' else dict(ema=args.ema)
  printed = loss_free.SIZES['1b']
  steps = round(printed['tokens'] / (printed['batch_size'] * printed['length']))
  run = dict(deepseek.RUNS['validation'], steps=steps, batch_size=printed['batch_size'])
  c = recipe.pretraining(strategies.SIZE, run, dict(router, k=strategies.SIZE['k'], **moves),
                         dict(balance=(0.0, 'sum')))
  return recipe.smoke(c) if args.smoke else c.lock()
