"""A language model of chained experts, from `paper.SIZE`."""

from stmoe import errors
from stmoe.configs import common
from stmoe.configs.chain_of_experts import paper


def per_turn(choices, iterations):
  """Returns the experts of one iteration of a token with `choices` of them in all, the shared one counted.

  Raises UserError for a number that does not divide, or leaves no routed expert.
  """
  if iterations < 1 or choices % iterations or choices // iterations < 2:
    whole = max(2, round(choices / max(iterations, 1))) * max(iterations, 1)
    raise errors.UserError(f'choices={choices} with iterations={iterations}: every iteration has equally '
                           f'many experts, at least one and the shared one; nearest: choices={whole}')
  return choices // iterations


def turn(router, d_ff, init_scale=1.0, **experts):
  """Returns the layer of one iteration: a shared expert beside routed ones of the same width."""
  inner = common.moe(router, d_ff, experts='glu', activation='silu') | experts
  inner['name'] = inner.pop('layer')
  inner['experts']['init_scale'] = init_scale
  return dict(name='shared', d_ff=d_ff, num_shared=1, init_scale=init_scale, inner=inner)


def block(experts, choices, iterations, gate='each', residual='previous', outer=False):
  """Returns the block of all layers; one iteration is the sparse baseline, with its skip connection."""
  size = paper.SIZE
  chosen = per_turn(choices, iterations)
  routed = common.whole('experts', experts, chosen) - 1
  router = dict(name='deepseek_moe', num_experts=routed, k=chosen - 1)
  layer = turn(router, size['d_ff'], init_scale=paper.INIT_STD ** 2 * size['d_model'])
  if iterations == 1:
    return dict(layer=layer.pop('name'), **layer)
  each = common.choose('gate', gate, dict(each=True, one=False))
  return dict(layer='chain_of_experts', norm=False, iterations=iterations, each_gate=each,
              inner_residual=residual, outer_residual=outer, inner=layer)


def pretraining(made, layers):
  """Returns the unlocked config of `layers` blocks `made`."""
  common.whole('layers', layers, 1, common.MOST_LAYERS)
  size, o = paper.SIZE, paper.OPTIM
  attention = dict(name='latent_attention', nope_dim=size['nope_dim'], value_dim=size['value_dim'],
                   kv_rank=size['kv_rank'])
  c = common.config()
  c.model = dict(name='lm', vocab_size=size['vocab_size'], d_model=size['d_model'],
                 num_heads=size['num_heads'], head_dim=size['head_dim'], attention=attention,
                 layers=(('m', layers),), tie_embeddings=False, dtype='bfloat16', scan_layers=True,
                 remat='elementwise')
  c.blocks = dict(m=made)
  c.losses = dict(balance=(paper.BALANCE, 'sum'), device=(0.0, 'sum'), communication=(0.0, 'sum'))
  c.data = common.data('text', length=paper.LENGTH, vocab='train:32000')
  c.optimizer = dict(name='adamw', b1=o['b1'], b2=o['b2'], eps=1e-8, weight_decay=o['weight_decay'])
  c.schedule = dict(name='linear', peak=o['peak'], warmup_steps=round(o['warmup'] * paper.STEPS),
                    end_fraction=1.0)
  c.train.update(steps=paper.STEPS, batch_size=paper.BATCH, clip=o['clip'], log_every=50, stats_every=250)
  c.eval.update(every=250, batches=64, batch_size=paper.BATCH)
  c.checkpoint.update(every=250)
  return c


def smoke(c):
  """Shrinks `c` as `common.smoke` does, shared experts too."""
  shared = c.blocks.m if 'num_shared' in c.blocks.m else c.blocks.m.inner
  shared.d_ff = 128
  c.model.attention.update(nope_dim=16, value_dim=32, kv_rank=32)
  c.schedule.warmup_steps = 5
  return common.smoke(c)
