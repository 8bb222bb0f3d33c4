r"""SwitchHead on WikiText-103: a fifth of the heads, whose values and outputs are mixtures of experts.

SwitchHead (arXiv:2312.07987), the released sweeps with rotary positions (paper.py).
Expected: the perplexity of the dense model of equal parameters, with 4 to 8 times fewer attention matrices.
Differs: give WikiText-103's files, or any text, as data.files. A dense head is turned whole, and is 42 wide
where it was 41. Betas, weight decay and the end of the rate are this project's; float32; RMSNorm.

  stmoe train switch_head/wikitext103 --config.data.files=wiki.train.tokens
  stmoe train switch_head/wikitext103:method=dense,size=big --config.data.files=wiki.train.tokens
  stmoe train switch_head/wikitext103:smoke        laptop, about a minute
  method = switch_head | switch_all (feed-forward layers of 16 experts, too; size small only) | dense
  size = small | big
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.switch_head import paper

VARIANTS = ('method=dense', 'method=switch_all', 'size=big')
METHODS = dict(switch_head=paper.ATTENTION, switch_all=dict(small=paper.SWITCH_ALL), dense=paper.DENSE)


def block(row, size, method):
  """Returns the block of all layers: its feed-forward layer, and its attention if that is not plain."""
  if method == 'switch_all':
    ffn = row['ffn']
    router = dict(name='sigma_moe', num_experts=ffn['experts'], k=ffn['k'], expert_dropout=0.0)
    layer = common.moe(router, ffn['d_ff'], dropout_rate=size['dropout'])
  else:
    layer = dict(layer='dense', d_ff=int(row['ff_multiplier'] * size['d_model']), activation='relu',
                 dropout_rate=size['dropout'])
  if method == 'dense':
    return layer
  router = dict(name='sigma_moe', num_experts=row['experts'], k=row['k'], expert_dropout=0.0)
  attention = dict(name='switch_head', router=router, nope_dim=row['width'] - turned(row), executor='blocks')
  return layer | dict(attention=attention)


def turned(row):
  """Returns how much of a head's width rotary positions turn; pairs are turned."""
  return int(paper.TURNED * row['width']) // 2 * 2


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='switch_head', size='small')
  size = common.choose('size', args.size, paper.SIZES)
  row = common.choose('size', args.size, common.choose('method', args.method, METHODS))
  dense = args.method == 'dense'
  c = common.config()
  c.model = dict(name='lm', vocab_size=paper.VOCAB, d_model=size['d_model'], num_heads=row['heads'],
                 head_dim=row['width'] + row['width'] % 2 if dense else turned(row),
                 layers=(('a', size['layers']),), tie_embeddings=False, dropout_rate=size['dropout'],
                 dtype='float32', scan_layers=True, remat='elementwise')
  c.blocks = dict(a=block(row, size, args.method))
  c.losses = dict(entropy=(paper.ENTROPY['ffn'] if args.method == 'switch_all' else 0.0, 'sum'),
                  attention_entropy=(paper.ENTROPY['attention'], 'sum'))
  c.data = common.data('text', length=size['length'], vocab=f'train:{paper.VOCAB}')
  c.optimizer = common.adamw(0.999, 0.01)
  c.schedule = dict(name='cosine', peak=paper.PEAK, warmup_steps=size['warmup'], end_fraction=0.1)
  c.train.update(steps=paper.STEPS, batch_size=paper.BATCH, clip=size['clip'], log_every=100,
                 stats_every=1000)
  c.eval.update(every=2000, batch_size=paper.BATCH)
  c.checkpoint.update(every=10_000)
  return common.smoke(c) if args.smoke else c.lock()
