r"""Balance by bias or by auxiliary loss, and the variants of the bias: perplexity and MaxVio.

Auxiliary-loss-free load balancing (arXiv:2408.15664), 1B models on 100B tokens. Expected validation
perplexity and MaxVio (paper.REPORTED, paper.ABLATION): auxiliary loss 9.56 and 0.72, loss-free 9.50 and
0.04; magnitude rule 9.51 to 9.53, multiplied bias slightly worse. `eval/max_vio` is the global MaxVio.
Differs: the paper gives no widths; the model is DeepSeekMoE's validation model scaled down to about 1B
parameters, under its optimizer and schedule; batch (unverified); C4/en instead of the paper's corpus.

  stmoe train loss_free_balancing/strategies --workdir runs/loss_free
  stmoe train loss_free_balancing/strategies:strategy=aux,alpha=0.001
  stmoe train loss_free_balancing/strategies:strategy=magnitude,u=0.01
  stmoe train loss_free_balancing/strategies:smoke                laptop, about a minute
  strategy = loss_free | aux | magnitude | multiply | centred | softmax; u: rate of the bias
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.deepseek_moe import paper as deepseek
from stmoe.configs.deepseek_moe import recipe
from stmoe.configs.loss_free_balancing import paper

# The stand-in: 7/10 of the validation model's width; 0.97B parameters.
SIZE = dict(deepseek.SIZES['validation'], d_model=896, num_heads=7, d_ff=597)
# strategy -> fields of the router, beside the rate.
STRATEGIES = dict(loss_free={}, aux={}, magnitude=dict(rule='magnitude'), multiply=dict(selection='multiply'),
                  centred=dict(centred=True), softmax=dict(scores='softmax'))
VARIANTS = ('strategy=aux', 'strategy=magnitude,u=0.01', 'strategy=multiply', 'strategy=softmax,u=1e-5')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, strategy='loss_free', u=paper.RATE, alpha=paper.BALANCE)
  fields = common.choose('strategy', args.strategy, STRATEGIES)
  aux = args.strategy == 'aux'
  router = dict(name='loss_free_balancing', k=SIZE['k'], rate=0.0 if aux else args.u, **fields)
  printed = paper.SIZES['1b']
  steps = round(printed['tokens'] / (printed['batch_size'] * printed['length']))
  run = dict(deepseek.RUNS['validation'], steps=steps, batch_size=printed['batch_size'])
  c = recipe.pretraining(SIZE, run, router, dict(balance=(args.alpha if aux else 0.0, 'sum')))
  return recipe.smoke(c) if args.smoke else c.lock()
