r"""SMoE-Dropout on characters: a frozen random router whose k grows from 8 to 16, against its baselines.

Sparse MoE as the New Dropout (arXiv:2303.01610), table 1. Expected: with all experts better than dense and
than learned routers, and better with every expert more. The table's bits per character are not at hand.
Differs: enwik8 is read as a file, and its last twentieth is for validation. There is no memory of earlier
segments (Transformer-XL has 512 positions). Rotary positions and pre-norm, without biases; dropout on
attention too; 24 sequences a step (22), which divide over 8 devices; variance-scaled initial experts.
Baselines' k of 2 and weight of the balance loss are this project's choice.

  stmoe train smoe_dropout/enwik8 --config.data.files=enwik8 --workdir runs/smoe_dropout
  stmoe eval runs/smoe_dropout --sweep blocks.m.router.eval_k=1,2,4,8,16
  stmoe train smoe_dropout/enwik8:method=dense
  stmoe train smoe_dropout/enwik8:smoke               laptop, about a minute
  method = smoe_dropout | dense | learned | learned_balance | thor
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.smoe_dropout import paper
from stmoe.configs.smoe_dropout import recipe

LEARNED = dict(learned=True, schedule='constant', k_min=paper.TOP_K)
TOP_2 = dict(recipe.router(**LEARNED), k_max=paper.TOP_K, eval_k=paper.TOP_K)
# method -> (layer, router losses, fields of section loss).
LAYERS = dict(
    smoe_dropout=(recipe.experts(recipe.router()), {}, {}),
    dense=(recipe.dense(paper.MODEL['dense_d_ff']), {}, {}),
    learned=(recipe.experts(TOP_2), {}, {}),
    learned_balance=(recipe.experts(TOP_2), common.BALANCE, {}),
    thor=(recipe.experts(dict(name='thor', num_experts=paper.MODEL['experts'], eval_dispatch='token')), {},
          dict(passes=2, consistency=1.0)),
)
METHODS = tuple(f'method={method}' for method in LAYERS)
VARIANTS = ('method=dense', 'method=learned_balance', 'method=thor')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='smoe_dropout')
  layer, losses, loss = common.choose('method', args.method, LAYERS)
  c = recipe.characters((('m', paper.MODEL['layers']),), dict(m=layer))
  c.losses.update(losses)
  c.loss.update(loss)
  return recipe.smoke(c) if args.smoke else c.lock()
