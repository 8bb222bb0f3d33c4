r"""THOR, Switch and dense on a small translation task, such as Multi30k English to German, on two cores.

Taming Sparsely Activated Transformer with Stochastic Experts (arXiv:2110.04260). Expected (paper.py,
unverified, of larger sets): Switch equals dense to 0.5 BLEU, THOR is 2 to 3 above both. All of them are above
14.3 BLEU, which replacing word by word gives on Multi30k (how far it was run: experiments/finetune_multi30k).
Differs: this project's choices are 2+2 layers of width 192 and 4,000 pieces, dropout 0.1, and 16 rows of 40
tokens a side. So is Adafactor, whose steps are relative to the size of a matrix; the paper's Adam learned
about four times slower here. As thor/iwslt otherwise. A step of two passes costs two steps of one:
`stmoe compare` gives equal FLOPs.

  stmoe compare thor/multi30k --seeds 0,1 --config.data.files=train.en,train.de,val.en,val.de
  stmoe train thor/multi30k:method=switch --config.data.files=train.en,train.de,val.en,val.de
  stmoe train thor/multi30k:smoke                     laptop, about a minute
  method = thor | switch | dense; BLEU of greedy decoding is pairs/bleu@decode, at the end and in results.json
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.thor import recipe

# What `stmoe compare thor/multi30k` compares; the first keeps its steps, the other methods get its FLOPs.
METHODS = ('method=dense', 'method=switch', 'method=thor')
VARIANTS = ('method=dense', 'method=switch')
SIZE = dict(d_model=192, d_ff=768, num_heads=3, head_dim=64, layers=2, experts=4, dropout=0.1)
LENGTH, ROWS = 40, 16


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='thor')
  common.choose('method', args.method, recipe.CONTROLS)
  c = recipe.translation(SIZE, 'pairs', vocab=4_000, steps=2_400, control=args.method)
  c.model.dtype = 'float32'
  c.data.update(inputs_length=LENGTH, targets_length=LENGTH)
  c.optimizer = dict(name='adafactor', decay_rate=0.8, clipping_threshold=1.0)
  c.schedule.update(peak=4e-2, warmup_steps=200)
  c.train.update(batch_size=ROWS, log_every=50, stats_every=500)
  c.eval.update(every=2_400, batch_size=ROWS, methods=('decode',), examples=0)
  c.checkpoint.update(every=500, best='')
  c.decode = dict(name='greedy')
  if args.smoke:
    c.eval.examples = 4
    return recipe.smoke(c)
  return c.lock()
