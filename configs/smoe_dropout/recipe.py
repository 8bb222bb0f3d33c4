"""The character model of the paper's table 1, with any of its layers."""

from stmoe.configs import common
from stmoe.configs.smoe_dropout import paper


def router(**fields):
  """Returns the paper's router with other `fields`; its schedule is as long as the training."""
  fields = dict(k_min=paper.SCHEDULE['k_min'], schedule=paper.SCHEDULE['schedule'], learned=False) | fields
  return dict(name='smoe_dropout', num_experts=paper.MODEL['experts'], k_max=None, eval_k=None, total_steps=1,
              **fields)


def experts(router, d_ff=paper.MODEL['d_ff']):
  """Returns a layer of experts behind `router`, with the paper's dropout after their ReLU."""
  return common.moe(router, d_ff, dropout_rate=paper.MODEL['dropout'])


def dense(d_ff):
  """Returns a dense layer with the paper's dropout after its ReLU."""
  return dict(layer='dense', d_ff=d_ff, dropout_rate=paper.MODEL['dropout'])


def characters(layers, blocks):
  """Returns the unlocked config of a language model of bytes with this pattern of these blocks."""
  model, optim = paper.MODEL, paper.OPTIM
  c = common.config(optim['seed'])
  c.model = dict(name='lm', vocab_size=384, d_model=model['d_model'], num_heads=model['num_heads'],
                 head_dim=model['head_dim'], layers=layers, tie_embeddings=True,
                 dropout_rate=model['dropout'], dtype='float32', scan_layers=True, remat='elementwise')
  c.blocks = blocks
  c.data = common.data('text', paper.LENGTH, files=('enwik8',))
  c.optimizer = dict(name='adamw', b1=optim['b1'], b2=optim['b2'], eps=1e-8, weight_decay=0.0)
  c.schedule = dict(name='cosine', peak=optim['learning_rate'], warmup_steps=0)
  c.train.update(steps=optim['steps'], batch_size=24, clip=optim['clip'], log_every=100, stats_every=4000)
  c.eval.update(every=optim['eval_every'], batch_size=8)
  c.checkpoint.update(every=optim['eval_every'])
  common.schedule(c)
  return c


def smoke(c):
  """Returns `c` shrunk as `common.smoke` does, locked; half of its eight experts are active at first."""
  for block in c.blocks.values():
    if 'router' in block and 'k_min' in block.router:
      block.router.k_min = min(block.router.k_min, 4)
      block.router.k_max = min(block.router.k_max or 8, 8)
  return common.smoke(c)
