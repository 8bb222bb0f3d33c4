r"""Union of Experts on WikiText-103: networks and attention in shards, each with half of the tokens.

Union of Experts (arXiv:2503.02495), the released script of language models. Expected: perplexity 2.38 below
the best other mixture, at 76 % of its FLOPs. The released selection sees later tokens of the text that it
predicts, so its perplexities are those of a leak: `select=data` is that form, `causal` is ours.
Differs: give WikiText-103's files, or any text, as data.files. A vocabulary trained on it instead of words
with an adaptive softmax, no memory of earlier rows, RMSNorm before sub-layers, GELU by tanh; 64 rows a step
(60), which divide over 8 devices. Betas and the schedule are not stated. Heads of `causal` have room for
three quarters of the tokens, of `data` for half. Half of the tokens choose a shard of `causal` on average.

  stmoe train union_of_experts/wikitext103 --config.data.files=wiki.train.tokens
  stmoe train union_of_experts/wikitext103:select=data,over=batch --config.data.files=wiki.train.tokens
  stmoe train union_of_experts/wikitext103:smoke        laptop, about a minute
  method = union | sequence (a row chooses its shards, and leaks as well; attention as data) | dense
  select = causal | data; gate = none (a frozen gate, as released) | multiply | straight
  over = experts | batch; attention=False leaves attention dense
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.union_of_experts import paper

VARIANTS = ('method=dense', 'select=data,over=batch', 'gate=multiply', 'gate=straight', 'attention=False',
            'method=sequence')
ROOM = dict(causal=0.75, data=paper.SHARE)                           # of heads


def block(method, select, gate, over, attention):
  """Returns the block of all layers."""
  ffn = dict(activation='gelu', dropout_rate=paper.MODEL['dropout'], init_scale=1.0, use_bias=True)
  if method == 'dense':
    return dict(layer='dense', d_ff=paper.MODEL['d_ff'], **ffn)
  selected = dict(select=select, over=over, gate=gate, capacity=paper.CAPACITY, epsilon=paper.EPSILON,
                  allow_causal=select == 'data')
  router = dict(num_experts=paper.EXPERTS, k=paper.K)
  if method == 'sequence':
    router |= dict(name='sequence_selection', length=paper.MODEL['length'], gate=gate, allow_causal=True)
  else:
    router |= dict(name='union_of_experts', share=paper.SHARE, **selected)
  made = dict(layer='moe', executor='blocks', group_size=None, router=router,
              experts=dict(name='mlp', d_ff=paper.MODEL['d_ff'] // paper.EXPERTS, **ffn))
  heads = dict(name='union_of_experts', share=ROOM[select], use_bias=True, **selected)
  return made | (dict(attention=heads) if attention else {})


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='union', select='causal', gate='none', over='experts',
                         attention=True)
  common.choose('method', args.method, dict.fromkeys(('union', 'sequence', 'dense')))
  common.choose('select', args.select, ROOM)
  m, o = paper.MODEL, paper.OPTIM
  select = 'data' if args.method == 'sequence' else args.select
  c = common.config()
  c.model = dict(name='lm', vocab_size=32_000, d_model=m['d_model'], num_heads=m['num_heads'],
                 head_dim=m['head_dim'], layers=(('m', m['layers']),), tie_embeddings=True,
                 dropout_rate=m['dropout'], dtype='float32', scan_layers=True, remat='elementwise')
  c.blocks = dict(m=block(args.method, select, args.gate, args.over, args.attention))
  c.data = common.data('text', length=m['length'], vocab='train:32000')
  c.optimizer = dict(name='adamw', b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)
  c.schedule = dict(name='cosine', peak=o['learning_rate'], warmup_steps=o['warmup'], end_fraction=0.0)
  c.train.update(steps=o['steps'], batch_size=64, clip=0.25, log_every=100, stats_every=1000)
  c.eval.update(every=4000, batch_size=64)
  c.checkpoint.update(every=4000)
  return common.smoke(c) if args.smoke else c.lock()
