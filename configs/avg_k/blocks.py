r"""A memory of 16 dense layers in blocks, of which a token reads 4096 cells; Switch, Hash, dense beside it.

Avg-K (arXiv:2305.13999). Expected: perplexity falls with the size of a block, down to 64 cells. Avg-K is
below Switch and Hash at every size, with about 1 % more FLOPs and no balance loss.
Differs: C4/en and a vocabulary trained on it; rotary positions and RMSNorm; optimizer, rate and batch are
this project's; widths of the model are from memory (paper.py). Switch and Hash have whole experts, top-1.

  stmoe train avg_k/blocks
  stmoe train avg_k/blocks:block=4096
  stmoe train avg_k/blocks:method=switch
  stmoe train avg_k/blocks:smoke                      laptop, about a minute
  method = avg_k | vanilla (blocks by the mean of what their cells hold: no FLOPs are saved) | gated (outputs
  weighted by a softmax of the scores) | momentum (the gate follows the keys) | switch | hash | dense
  block = 4096 | 2048 | 1024 | 512 | 256 | 128 | 64 | 1; size = 4 | 8 | 16 | 32 dense layers; every = 2 | 4
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.avg_k import paper

METHODS = dict(avg_k={}, vanilla=dict(score='hidden'), gated=dict(gated=True),
               momentum=dict(momentum=0.9, normalize=True), switch=None, hash=None, dense=None)
VARIANTS = ('block=4096', 'block=1024', 'block=256', 'method=vanilla', 'method=gated', 'method=momentum',
            'method=switch', 'method=hash', 'method=dense', 'size=4', 'every=4')


def blocks(method, size, cells, d_ff):
  """Returns the memory of `size` dense layers in blocks of so many cells, of which d_ff cells are read."""
  return dict(layer='avg_k', d_ff=cells, num_blocks=size * d_ff // cells, k=d_ff // cells, activation='gelu',
              executor='blocks', **METHODS[method])


def experts(method, size, d_ff):
  """Returns Switch or Hash with `size` experts of width d_ff."""
  fields = dict(switch=dict(capacity_factor=(1.25, 2.0), jitter=0.0), hash=dict(vocab_size=None))[method]
  return common.moe(dict(name=method, num_experts=size, **fields), d_ff, activation='gelu')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='avg_k', block=64, size=16, every=2)
  common.choose('method', args.method, METHODS)
  for key, known in (('block', paper.BLOCKS), ('size', paper.E), ('every', paper.EVERY)):
    common.choose(key, vars(args)[key], dict.fromkeys(known))
  s = paper.SIZE
  dense = dict(layer='dense', d_ff=s['d_ff'], activation='gelu')
  c = common.config()
  c.model = dict(name='lm', vocab_size=s['vocab_size'], d_model=s['d_model'], num_heads=s['num_heads'],
                 head_dim=s['head_dim'], tie_embeddings=True, dtype='bfloat16', scan_layers=True,
                 remat='full', layers=(('d' * (args.every - 1) + 'm', s['layers'] // args.every),))
  if args.method == 'dense':
    c.model.layers = (('d', s['layers']),)
    c.blocks = dict(d=dense)
  elif METHODS[args.method] is None:
    c.blocks = dict(d=dense, m=experts(args.method, args.size, s['d_ff']))
    if args.method == 'hash':
      c.blocks.m.router.vocab_size = c.model.get_ref('vocab_size')
  else:
    c.blocks = dict(d=dense, m=blocks(args.method, args.size, args.block, s['d_ff']))
  c.losses = dict(balance=(paper.BALANCE if args.method == 'switch' else 0.0, 'mean'))
  c.data = common.data('c4', s['length'], vocab=f'train:{s["vocab_size"] // 1000 * 1000}')
  common.train(c, steps=int(paper.TOKENS / (512 * s['length'])), batch_size=512, peak=7e-4,
               optimizer=common.adamw(0.98, 0.01))
  return smoke(c) if args.smoke else c.lock()


def smoke(c):
  """Shrinks `c` as `common.smoke` does, with 16 blocks of which a token reads 4."""
  if 'num_blocks' in c.blocks.get('m', {}):
    c.blocks.m.update(num_blocks=16, k=4)
  c.schedule.warmup_steps = 5
  return common.smoke(c)
