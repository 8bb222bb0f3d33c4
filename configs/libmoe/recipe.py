"""The language model of LibMoE's sweeps with any of its layers."""

from stmoe.configs import common
from stmoe.configs.libmoe import paper


def sparse(router, **fields):
  """Returns a layer of LibMoE's experts behind `router`, a name, with its other `fields`."""
  size = paper.SIZE
  layer = common.moe(dict(fields, name=router, num_experts=size['experts'], k=size['k']), size['d_ff'],
                     out_scale=paper.INIT_SCALE / size['experts'])
  layer['experts'].update(init_scale=paper.INIT_SCALE)
  return layer


def language(block, losses):
  """Returns the unlocked config of a language model of sparse layers `block`.

  losses: dict name -> coefficient of a router's loss.
  """
  size, optim = paper.SIZE, paper.OPTIM
  turned = int(paper.TURNED * size['width']) // 2 * 2                # rotary positions turn pairs
  b1, b2 = optim['betas']
  c = common.config()
  c.model = dict(name='lm', vocab_size=paper.VOCAB, d_model=size['d_model'], num_heads=size['num_heads'],
                 head_dim=turned, layers=(('m', size['layers']),), tie_embeddings=False,
                 dtype='float32', scan_layers=True, remat='elementwise')
  c.blocks = dict(m=dict(block, attention=dict(name='attention', nope_dim=size['width'] - turned)))
  c.losses = {name: (weight, paper.REDUCTION) for name, weight in losses.items()}
  c.data = common.data('c4', size['length'], vocab=f'train:{paper.VOCAB}')
  c.optimizer = dict(name='adamw', b1=b1, b2=b2, eps=1e-8, weight_decay=optim['weight_decay'])
  c.schedule = dict(name='cosine', peak=optim['peak'], warmup_steps=optim['warmup_steps'],
                    end_fraction=optim['end_fraction'])
  c.train.update(steps=size['steps'], batch_size=size['batch'], clip=optim['clip'], log_every=100,
                 stats_every=1000)
  c.eval.update(every=2000, batch_size=size['batch'])
  c.checkpoint.update(every=10_000)
  common.schedule(c)
  return c


def smoke(c):
  """Returns `c` shrunk as `common.smoke` does, locked; a token has two of the eight experts that are left."""
  common.sparse(c.blocks.m).router.k = 2
  return common.smoke(c)
