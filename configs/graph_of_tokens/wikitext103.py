r"""Routing by means over similar or attended tokens, against plain SMoE, on WikiText-103.

Graph of Tokens (arXiv:2505.00792, unverified: formulas, sizes and results are from descriptions of it).
Expected: fewer tokens change their expert late in training, and a lower perplexity; by how much is not known.
Differs: give WikiText-103's files, or any text, as data.files; rotary positions; tau and sigma are 1;
optimizer, rate, batch, steps and balance coefficient are this project's. In a causal model a token sees
earlier ones only, and the attention's head is chosen by the rows so far: by those of a whole sequence
later tokens would decide.

  stmoe train graph_of_tokens/wikitext103 --config.data.files=wiki.train.tokens
  stmoe train graph_of_tokens/wikitext103:by=attention --config.data.files=wiki.train.tokens
  stmoe train graph_of_tokens/wikitext103:smoke        laptop, about a minute
  by = similarity | attention | none (plain SMoE); surer: only neighbours that are as sure
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.graph_of_tokens import paper

VARIANTS = ('by=attention', 'by=none', 'surer')


def block(by, surer):
  """Returns the sparse block of all layers."""
  size = paper.SIZE
  experts = dict(num_experts=size['experts'], k=size['k'])
  router = dict(name='smoe', **experts) if by == 'none' else dict(name='graph_of_tokens', by=by, surer=surer,
                                                                   **experts)
  made = common.moe(router, size['d_ff'])
  return made | dict(attention=dict(name='graph_of_tokens', head='earlier')) if by == 'attention' else made


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, by='similarity', surer=False)
  common.choose('by', args.by, dict.fromkeys(('similarity', 'attention', 'none')))
  size = paper.SIZE
  c = common.config()
  c.model = dict(name='lm', vocab_size=32_000, d_model=size['d_model'], num_heads=size['heads'],
                 head_dim=size['d_model'] // size['heads'], layers=(('m', size['layers']),),
                 tie_embeddings=False, dtype='float32', scan_layers=True, remat='elementwise')
  c.blocks = dict(m=block(args.by, args.surer))
  c.losses = dict(balance=(0.01, 'mean'))
  c.data = common.data('text', length=size['length'], vocab='train:32000')
  common.train(c, steps=60_000, batch_size=48, peak=7e-4, warmup_steps=5 if args.smoke else 3000,
               eval_every=2000, eval_rows=48, save_every=5000, optimizer=common.adamw(0.98, 0.01))
  return common.smoke(c) if args.smoke else c.lock()
