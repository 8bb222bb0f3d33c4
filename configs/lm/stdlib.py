r"""Sparse and dense language models of the Python standard library, at equal active FLOPs per token.

No paper's experiment: the place to try a router. Byte vocabulary, so that the loss in bits per
byte compares with the n-gram baselines 4.47 (1-gram), 2.62 (3-gram) and 1.96 (6-gram, the best):
experiments/baselines.py.

  stmoe train lm/stdlib:method=switch --workdir runs/switch       1.7 PFLOP: a GPU
  stmoe train lm/stdlib:method=switch,smoke                       laptop, about a minute
  method = dense or any method of configs/*/compared.py: switch, gshard, st_moe, expert_choice, ...

Expert choice is not causal: an expert looks at all tokens of a sequence before it chooses. So in
a causal stack the loss would be low because the choice leaks the text to be predicted. Expert choice is
trained here in the encoder of a T5 model on span corruption instead; `backbone=t5` puts any
other method into the same model. Losses of the two backbones do not compare.
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.lm import methods

# What `stmoe compare lm/stdlib` compares.
METHODS = ('method=dense', 'method=switch', 'method=gshard', 'method=st_moe')

# Arguments beside '' and 'smoke': an argument for each other path through this file.
VARIANTS = ('method=dense',
            'method=gshard',
            'method=st_moe',
            'method=expert_choice',
            'method=switch,backbone=t5')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='switch', backbone='', experts=8)
  row = methods.find(args.method)
  backbone = args.backbone or row['backbone']
  d_model, num_layers, d_ff, length = (128, 2, 256, 128) if args.smoke else (256, 8, 1024, 512)

  c = common.config()
  methods.put(c, row, args.experts, d_ff, num_layers, length, backbone=backbone, vocab_size=384,
              d_model=d_model)
  if backbone == 't5':
    c.data = common.seq2seq('stdlib', inputs_length=length, targets_length=length // 4 + 8)
  else:
    c.data = common.data('stdlib', length=length)
  c.optimizer = common.adamw()
  c.schedule = dict(name='cosine', peak=1e-3, warmup_steps=200, end_fraction=0.1)
  c.train.update(steps=2000, batch_size=32, clip=1.0)
  if args.smoke:
    c.schedule.update(peak=3e-3, warmup_steps=20)
    c.train.update(steps=60, batch_size=8, log_every=10, stats_every=30)
    c.eval.update(every=30, batches=4, batch_size=8)
    c.checkpoint.update(every=30)
  return c.lock()
