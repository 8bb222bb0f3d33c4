"""A language model with layerwise recurrent routers, from an entry of `paper.SIZES`."""

from stmoe.configs import common
from stmoe.configs.rmoe import paper

# What the sources do not give, by size. The widths of experts make the reported counts.
OURS = dict(
    small=dict(heads=8, head_dim=44, d_ff=232, length=512, vocab='bytes', vocab_size=384, batch=48,
               steps=60_000, peak=7e-4),
    large=dict(heads=16, head_dim=80, d_ff=452, length=2048, vocab='train:32000', vocab_size=32_000,
               batch=512, steps=40_000, peak=3e-4))


def router(size, method):
  """Returns the router of a method: passing on, off or stopped, cells rnn, lstm or none, or a plain one."""
  experts = dict(num_experts=size['experts'], k=size['k'])
  methods = dict(on={}, off=dict(passing='off'), stopped=dict(passing='stopped'), rnn=dict(cell='rnn'),
                 lstm=dict(cell='lstm'), linear=dict(cell='none'), unpooled=dict(pooled=False), plain=None)
  fields = common.choose('method', method, methods)
  if fields is None:
    return dict(name='st_moe', capacity_factor=(None, None), second_policy='all', **experts)
  return dict(name='rmoe', width=paper.WIDTH, **experts, **fields)


def pretraining(name, method, task, files=()):
  """Returns the unlocked config of size `name`, all layers sparse, SwiGLU experts, nothing dropped."""
  size, ours = paper.SIZES[name], OURS[name]
  c = common.config()
  c.model = dict(name='lm', vocab_size=ours['vocab_size'], d_model=size['d_model'], num_heads=ours['heads'],
                 head_dim=ours['head_dim'], layers=(('m', size['layers']),), tie_embeddings=False,
                 dtype='float32' if name == 'small' else 'bfloat16', scan_layers=True, remat='elementwise')
  c.blocks = dict(m=common.moe(router(size, method), ours['d_ff'], experts='glu', activation='silu'))
  c.losses = dict(balance=(paper.BALANCE, 'mean'), z=(0.0, 'mean'))
  c.data = common.data(task, length=ours['length'], vocab=ours['vocab'], files=files)
  common.train(c, steps=ours['steps'], batch_size=ours['batch'], peak=ours['peak'], eval_every=2000,
               eval_rows=ours['batch'], save_every=5000)
  return c


def smoke(c):
  """Shrinks `c` as `common.smoke` does, but for two sparse layers, so that a state passes on; locked."""
  c.schedule.warmup_steps = 5
  c = common.smoke(c)
  with c.unlocked():
    c.model.layers = (('m', 2),)
    if 'width' in c.blocks.m.router:
      c.blocks.m.router.width = 16
  return c
