r"""A Switch model of the Python standard library in 17 minutes of two CPU cores, and two models beside it.

  stmoe train lm/stdlib_small                       Switch, 8 experts, top-1
  stmoe train lm/stdlib_small:method=dense          the same model at equal active FLOPs per token
  stmoe compare lm/stdlib_small:steps=600 --seeds 0,1,2      both and a Hash layer, with table and figures
  stmoe train lm/stdlib_small:smoke                 a minute
  method = dense or any causal method of configs/*/compared.py: switch, gshard, st_moe, ...

The Hash layer of the comparison has 32 experts: a table of token ids routes, as in lm/quickstart.
Measured (seed 0, two cores, CPython 3.11.7): Switch 1.538 bits per byte of validation in 17 minutes,
dense 1.544; best byte n-gram 1.96. In 600 steps over three seeds Hash is 0.073 ahead of dense
(experiments/stdlib_small). Pieces of 3.25 bytes read three times as much text per FLOP as bytes
do: 24 MFLOP a token, 3.1M tokens, 74 TFLOP in all.
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.lm import methods

# What `stmoe compare lm/stdlib_small` compares.
METHODS = ('method=switch', 'method=dense', 'method=hash,experts=32')

# Arguments beside '' and 'smoke': an argument for each other path through this file.
VARIANTS = ('method=dense', 'method=st_moe')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='switch', experts=8, steps=1500)
  row = methods.causal(args.method)
  d_model, num_layers, d_ff, length, batch_size = 192, 6, 768, 256, 8
  if args.smoke:
    d_model, num_layers, d_ff, length, batch_size = 128, 2, 256, 128, 8

  c = common.config()
  methods.put(c, row, args.experts, d_ff, num_layers, length, vocab_size=4096, d_model=d_model)
  c.data = common.data('stdlib', length=length, vocab='train:4096')
  c.optimizer = common.adamw()
  c.schedule = dict(name='cosine', peak=3e-3, warmup_steps=100, end_fraction=0.02)
  c.train.update(steps=args.steps, batch_size=batch_size, clip=1.0, log_every=20)
  c.eval.update(every=500, batch_size=batch_size)
  c.checkpoint.update(every=500)
  if args.smoke:
    c.schedule.update(warmup_steps=10)
    c.train.update(steps=40, log_every=10, stats_every=20)
    c.eval.update(every=40, batches=4)
    c.checkpoint.update(every=20)
  return c.lock()
