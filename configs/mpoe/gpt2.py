r"""A language model of GPT-2's size with top-2 experts as matrix product operators.

MPOE (arXiv:2203.01104), its GPT-2: a second expert by chance, capacity 1.25 and 2, balance loss 0.01, biases
that all experts share. Expected: lower perplexity than Switch with as many experts, at a fraction of its
parameters. The paper generates text of WikiText-2, EMNLP News and IMDB (unverified): give any as data.files.
Differs: rotary positions and RMSNorm, from scratch where the paper fine-tunes GPT-2; steps, batch, optimizer
and rate are this project's; the probability of the mask is not at hand, 0 unless it is given.

  stmoe train mpoe/gpt2 --config.data.files=wiki.train.tokens
  stmoe train mpoe/gpt2:mask=0.5 --config.data.files=wiki.train.tokens
  stmoe train mpoe/gpt2:smoke                         laptop, about a minute
  experts = 8 | 16; freeze: the central tensors do not train
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.mpoe import paper
from stmoe.configs.mpoe import recipe

VOCAB, LAYERS, LENGTH = 50_257, 12, 1024
VARIANTS = ('experts=16', 'mask=0.5', 'freeze')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, experts=8, mask=0.0, freeze=False)
  common.whole('experts', args.experts, 2)
  top2 = paper.TOP2
  router = dict(name='gshard', num_experts=args.experts, second_policy=top2['second_policy'],
                threshold=top2['second_threshold'], capacity_factor=top2['capacity_factor'],
                min_capacity=top2['min_capacity'])
  c = common.config()
  c.model = dict(name='lm', vocab_size=VOCAB, d_model=768, num_heads=12, head_dim=64, dropout_rate=0.1,
                 layers=(('m', LAYERS),), tie_embeddings=True, dtype='float32', scan_layers=True,
                 remat='elementwise')
  c.blocks = dict(m=dict(layer='moe', executor='gather', group_size=None, router=router,
                         experts=dict(name='mpo', d_ff=3072, activation='gelu', use_bias=True,
                                      init_scale=1.0)))
  c.losses.balance, c.losses.second_place = (paper.BALANCE['gpt2'], 'sum'), (0.0, 'mean')
  c.data = common.data('text', length=LENGTH, vocab='train:50000')
  c.optimizer = common.adamw(0.999, 0.01)
  c.schedule = dict(name='cosine', peak=1e-4, warmup_steps=500, end_fraction=0.0)
  c.train.update(steps=20_000, batch_size=32, clip=1.0, log_every=50, stats_every=500)
  c.eval.update(every=1000, batch_size=32)
  c.checkpoint.update(every=1000)
  recipe.central(c, args.mask, args.freeze)
  return common.smoke(c) if args.smoke else c.lock()
