r"""The first comparison: dense, Switch and a Hash layer at equal active FLOPs, in minutes on two cores.

  make quickstart                                           all three in 160 steps, the table and the figures
  stmoe train lm/quickstart:method=switch                   one of them
  method = dense or any causal method of configs/*/compared.py: switch, gshard, st_moe, ...

Switch sends a token to one of 8 experts as wide as the dense layer. The Hash layer sends a token to one of
32 by a table of token ids: no routing has to be learned, so all 32 experts learn from the first step.
Expected: Hash far ahead of dense (experiments/quickstart), every method below 3.0 bits per byte of the
validation files. A 3-gram of bytes has 2.62, by

  python -m stmoe.experiments.baselines lm/quickstart       n-grams and xz on the same files
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.lm import methods

# What `stmoe compare lm/quickstart` trains: the first method keeps its steps, other methods get its FLOPs.
METHODS = ('method=dense', 'method=switch', 'method=hash,experts=32')

# Arguments beside '' and 'smoke': an argument for each other path through this file.
VARIANTS = ('method=dense', 'method=gshard', 'method=st_moe')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='switch', experts=8, steps=240)
  row = methods.causal(args.method)

  c = common.config()
  methods.put(c, row, args.experts, d_ff=512, num_layers=4, length=128, group_size=2 * 128,
              vocab_size=2048, d_model=128)
  c.data = common.data('stdlib', length=128, vocab='train:2048')
  c.optimizer = common.adamw()
  c.schedule = dict(name='cosine', peak=4e-3, warmup_steps=20, end_fraction=0.05)
  c.train.update(steps=args.steps, batch_size=16, clip=1.0, log_every=10, stats_every=10)
  c.eval.update(every=160, batch_size=16)
  c.checkpoint.update(every=80)
  if args.smoke:
    c.train.update(steps=20, stats_every=10)
    c.eval.update(every=20, batches=4)
    c.checkpoint.update(every=10)
  return c.lock()
