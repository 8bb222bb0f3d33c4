r"""ZAYA's router in a small language model: with and without its memory over depth and its skip expert.

ZAYA (2025); the memory is that of RMoE, arXiv:2408.06793. Expected: nothing is printed for this. Here:
method=zaya no worse than method=plain at fewer average FLOPs, once tokens skip (metric active_experts).
Differs: all sizes, data, optimizer and rate are this project's. So is the rule by which the selection bias
moves. paper.py says what the source leaves open.

  stmoe train zaya/skip --workdir runs/zaya
  stmoe train zaya/skip:method=forgetful             nothing is passed on over depth
  stmoe train zaya/skip:method=working               no skip expert
  stmoe train zaya/skip:smoke                        laptop, about a minute
  method = zaya | forgetful | working | plain (a linear router with the same biases)
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.zaya import paper

SIZE = dict(d_model=512, layers=12, heads=8, experts=16, d_ff=1024, hidden=128)
SKIP = ('zero',)
# method -> (virtual experts, router and its fields).
METHODS = dict(zaya=(SKIP, dict(name='zaya')), forgetful=(SKIP, dict(name='zaya', passing=False)),
               working=((), dict(name='zaya')), plain=((), dict(name='loss_free_balancing', k=1)))
VARIANTS = tuple(f'method={method}' for method in METHODS if method != 'zaya')


def block(virtual, router):
  """Returns the sparse layer of SwiGLU experts with virtual experts and router of a row of METHODS."""
  own = dict(hidden=SIZE['hidden'], skip_bias=paper.SKIP_BIAS) if router['name'] == 'zaya' else {}
  layer = common.moe(dict(router, num_experts=SIZE['experts'], **own), SIZE['d_ff'], experts='glu',
                     activation='silu')
  return dict(layer, virtual=virtual)


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='zaya')
  c = common.config()
  c.model = dict(name='lm', vocab_size=32_000, d_model=SIZE['d_model'], num_heads=SIZE['heads'],
                 head_dim=SIZE['d_model'] // SIZE['heads'], layers=(('m', SIZE['layers']),),
                 tie_embeddings=False, dtype='bfloat16', scan_layers=True, remat='elementwise')
  c.blocks = dict(m=block(*common.choose('method', args.method, METHODS)))
  c.losses = dict(balance=(0.0, 'mean'), z=(0.0, 'mean'))
  c.data = common.data('c4', length=1024, vocab='train:32000')
  c.optimizer = dict(name='adamw', b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1)
  c.schedule = dict(name='cosine', peak=5e-4, warmup_steps=5, end_fraction=0.1)
  c.train.update(steps=50_000, batch_size=128, clip=1.0, log_every=100, stats_every=1000)
  c.eval.update(every=2000, batches=64, batch_size=128)
  c.checkpoint.update(every=5000)
  if not args.smoke:
    c.schedule.warmup_steps = 1000
    return c.lock()
  c = common.smoke(c)
  with c.unlocked():                       # two layers, so that something passes on
    c.model.layers = (('m', 2),)
    if 'hidden' in c.blocks.m.router:
      c.blocks.m.router.hidden = 16
  return c
