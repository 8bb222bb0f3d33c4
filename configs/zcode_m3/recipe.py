"""A multitask run: translation and denoising by one encoder-decoder, sparse in every second layer."""

from stmoe.configs import common
from stmoe.configs.zcode_m3 import paper

# Which tokens an over-full expert keeps: a random part, as in DeepSpeed, or those that come first.
KEEP = dict(random='random', order='choice')


def blocks(experts, d_ff, keep, group_size):
  """Returns the dense and the sparse block; without experts the sparse one is dense, too."""
  dense = dict(layer='dense', d_ff=d_ff, activation='relu')
  if not experts:
    return dict(d=dense, m=dense)
  gate = paper.GATE
  router = dict(name='pr_moe', num_experts=experts, k=gate['k'], capacity_factor=gate['capacity_factor'],
                min_capacity=gate['min_capacity'], keep=common.choose('keep', keep, KEEP), allow_causal=True)
  return dict(d=dense, m=common.moe(router, d_ff, group_size))


def training(experts, keep, size, group_size=None):
  """Returns the unlocked config but for its data, lengths of training and evaluation.

  size: dict of widths as paper.SIZE.
  """
  optim = paper.OPTIM
  c = common.config()
  c.model = dict(name='t5', vocab_size=size['vocab_size'], d_model=size['d_model'],
                 num_heads=size['num_heads'], head_dim=size['head_dim'],
                 encoder=(('dm', size['encoder'] // 2),), decoder=(('dm', size['decoder'] // 2),),
                 tie_embeddings=True, dropout_rate=optim['dropout'], dtype='float32', scan_layers=True,
                 remat='elementwise')
  c.blocks = blocks(experts, size['d_ff'], keep, group_size)
  c.losses = dict(balance=(paper.GATE['balance'] if experts else 0.0, 'sum'))
  c.loss.label_smoothing = optim['label_smoothing']
  c.optimizer = dict(name='adamw', b1=optim['b1'], b2=optim['b2'], eps=1e-8, weight_decay=0.0)
  c.schedule = dict(name='inverse_sqrt', peak=optim['peak'] or 1e-3, warmup_steps=optim['warmup_steps'])
  return c


def data(mixture, length, vocab, tags, **fields):
  """Returns the data section of a mixture of pairs and texts, rows of `length` on both sides."""
  noise = {name: paper.MIXTURE[name] for name in ('noise_density', 'mean_span_length')}
  section = common.pairs('', length, length, vocab=vocab, objective='multitask', extra_ids=100, tags=tags)
  return section | dict(mixture=mixture, mixture_temperature=1.0, noise='infill') | noise | fields


def smoke(c, tasks):
  """Shrinks `c` as `common.smoke` does; tasks are pairs of the standard library, with 'both' texts, too."""
  c.schedule.warmup_steps = 5
  c = common.smoke(c).unlock()
  mixture = (('stdlib', 1.0), ('stdlib_pairs', 1.0)) if tasks == 'both' else (('stdlib_pairs', 1.0),)
  c.data.update(task='stdlib_pairs', mixture=mixture, mixture_temperature=1.0, tags=('stdlib_pairs=<def>',),
                files=())
  return c.lock()
