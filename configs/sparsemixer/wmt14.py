r"""SparseMixer on WMT'14 English to German: Transformer-base with a sparse layer in every second block.

SparseMixer (arXiv:2310.00811), the released example. Expected BLEU with 2, 4, 6, 8, 16 experts
(paper.REPORTED, unverified): SparseMixer 28.72, 28.61, 28.32, 28.12, 28.08; Switch 28.17, 28.05, 27.96,
27.99, 27.81; dense 28.33. Expected: training up to twice as fast as with Switch.
Differs: relative position biases and pre-norm (T5's blocks) instead of sinusoids; 32,000 pieces of
SentencePiece, whose number the example does not say; rows of 256 packed tokens; bfloat16; dropout inside
dense layers has one mask a sequence; the balance loss leaves padding out, the example counts it.

  stmoe train sparsemixer/wmt14 --workdir runs/sparsemixer
  stmoe train sparsemixer/wmt14:method=switch,experts=16
  stmoe train sparsemixer/wmt14:smoke                 laptop, about a minute
  method = sparsemixer | grin (top-1 of version 2) | switch | dense; experts = 2 | 4 | 6 | 8 | 16
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.sparsemixer import paper

LENGTH = 256                       # of a packed row, source and target
VOCAB = 32_000
ROUTERS = dict(sparsemixer=dict(name='sparsemixer', epsilon=paper.EPSILON),
               grin=dict(name='grin', k=1, epsilon=paper.EPSILON),
               switch=dict(name='switch_gate', epsilon=paper.EPSILON), dense=None)
VARIANTS = ('method=grin', 'method=switch', 'method=dense', 'experts=16')


def block(method, experts):
  """Returns the layer of every second block; SparseMixer's own scales its output."""
  router, width = common.choose('method', method, ROUTERS), paper.SIZE['d_ff']
  if router is None:
    return dict(layer='dense', d_ff=width, activation='relu', dropout_rate=paper.ACTIVATION_DROPOUT)
  inner = common.moe(dict(router, num_experts=experts), width, dropout_rate=paper.ACTIVATION_DROPOUT)
  if method != 'sparsemixer':
    return inner
  return dict(layer='scaled', inner=dict(inner, name=inner.pop('layer')))


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='sparsemixer', experts=paper.DEFAULT_EXPERTS)
  size, optim = paper.SIZE, paper.OPTIM
  layers = (('md', size['layers'] // 2),)
  c = common.config()
  c.model = dict(name='t5', vocab_size=VOCAB, d_model=size['d_model'], num_heads=size['num_heads'],
                 head_dim=size['head_dim'], tie_embeddings=True, scaled=True, encoder=layers, decoder=layers,
                 dropout_rate=optim['dropout'], dtype='bfloat16', scan_layers=True, remat='elementwise')
  c.blocks = dict(d=block('dense', 0), m=block(args.method, args.experts))
  c.data = common.pairs('wmt14_en_de', LENGTH, LENGTH, vocab=f'train:{VOCAB}')
  c.losses.balance = (0.0 if args.method == 'dense' else paper.BALANCE, 'sum')
  c.loss.label_smoothing = optim['label_smoothing']
  c.optimizer = dict(name='adamw', b1=optim['b1'], b2=optim['b2'], eps=1e-8,
                     weight_decay=optim['weight_decay'])
  c.schedule = dict(name='inverse_sqrt', peak=optim['learning_rate'], warmup_steps=optim['warmup_steps'])
  rows = optim['tokens_per_batch'] // LENGTH
  c.train.update(steps=optim['steps'], batch_size=rows, clip=optim['clip'], log_every=100, stats_every=1000)
  c.eval.update(every=5000, batch_size=rows)
  c.checkpoint.update(every=5000)
  if args.smoke:
    c.schedule.warmup_steps = 10
    return common.smoke(c)
  return c.lock()
