"""Decoders with BASE layers: where they stand, what they are made of, and how they are trained.

In training the balanced assignment of a token depends on all tokens of its group, later tokens too. So
these models say allow_causal=True: their training loss is no language-modelling score. Evaluation is
greedy, each token by itself, hence causal.
"""

import itertools

from stmoe.configs import common
from stmoe.configs.base import paper


def placed(num_layers, num_base=1, top=False, fairseq=False):
  """Returns the pattern of `num_layers` dense blocks (d) and `num_base` BASE layers (m).

  They stand after blocks floor(i * L / (N+1)) for i = 1..N (paper, section 5), or after the last block
  (`top`). The reference (`fairseq`) inserts at these places of the growing list, which is earlier by up to N
  - 1 blocks.

  >>> placed(24, 3), placed(24, 3, fairseq=True)[:3]
  ((('d', 6), ('m', 1), ('d', 6), ('m', 1), ('d', 6), ('m', 1), ('d', 6)), (('d', 6), ('m', 1), ('d', 5)))
  """
  order = ['d'] * num_layers
  for i in range(num_base):
    at = num_layers if top else (i + 1) * num_layers // (num_base + 1)
    order.insert(at if fairseq else at + i, 'm')
  return tuple((letter, len(list(run))) for letter, run in itertools.groupby(order))


def block(d_ff, num_experts, num_sublayers, group_size, shuffle=True, assignment='auction',
          executor='gather'):
  """Returns a BASE layer as a block without norm: its experts see the residual stream and have own norms."""
  sparse = dict(executor=executor, group_size=group_size,
                router=dict(name='base', num_experts=num_experts, assignment=assignment, allow_causal=True),
                experts=dict(name='residual', d_ff=d_ff, num_sublayers=num_sublayers))
  if shuffle:
    return dict(layer='shuffled', norm=False, inner=dict(name='moe', **sparse))
  return dict(layer='moe', norm=False, **sparse)


def inserted(*args, **fields):
  """Returns `block` as an extra layer: without attention."""
  return dict(block(*args, **fields), attention=False)


def decoder(size, layers, vocab_size=paper.VOCAB_SIZE):
  """Returns the model section of a size (d_model, num_heads, head_dim) with this pattern."""
  return dict(name='lm', vocab_size=vocab_size, d_model=size['d_model'], num_heads=size['num_heads'],
              head_dim=size['head_dim'], layers=layers, tie_embeddings=True, dtype='bfloat16',
              scan_layers=True, remat='full')


def pretraining(size, num_layers, num_sublayers, num_experts=paper.EXPERTS, num_base=1, top=False,
                fairseq=False, shuffle=True, assignment='auction', optim=None):
  """Returns the unlocked config of BASE layers in a decoder of `size`; 0 layers or experts = dense.

  Args:
    size:  d_model, d_ff, num_heads, head_dim.
    optim: peak, steps, rows per worker, ...; None = the paper's.
  """
  optim = optim or dict(paper.OPTIM, peak=paper.OPTIM['peak'][1], b1=0.9, b2=0.98, steps=56_000)
  rows = optim['rows_per_worker'] * optim['workers']
  c = common.config()
  c.model = decoder(size, placed(num_layers, num_base, top, fairseq))
  c.blocks = dict(d=dict(layer='dense', d_ff=size['d_ff']))
  if num_base:
    c.blocks.m = inserted(size['d_ff'], num_experts, num_sublayers, optim['rows_per_worker'] * paper.LENGTH,
                          shuffle, assignment)
    c.groups = dict(expert=dict(clip=0.0))                           # the norm is that of shared parameters
  c.data = common.data('c4', length=paper.LENGTH, vocab=f'train:{paper.VOCAB_SIZE}')
  c.optimizer = dict(name='adamw', b1=optim['b1'], b2=optim['b2'], eps=1e-8, weight_decay=0.0)
  c.schedule = dict(name='linear', peak=optim['peak'], warmup_steps=optim['warmup_steps'], end_fraction=0.0)
  c.train.update(steps=optim['steps'], batch_size=rows * optim['accumulate'],
                 microbatches=optim['accumulate'], clip=optim['clip'], log_every=100, stats_every=1000)
  c.eval.update(every=2000, batches=50, batch_size=rows)
  c.checkpoint.update(every=1000)
  # Experts over all devices (their number must divide the experts), and so is the batch.
  c.mesh.update(**(dict(data=1, expert=-1) if num_base else dict(data=-1, expert=1)))
  return c


def smoke(c):
  """Returns `c` small and locked; experts of two sublayers."""
  block = common.sparse(c.blocks.get('m'))
  if block is not None and 'num_sublayers' in block.experts:
    block.experts.num_sublayers = min(block.experts.num_sublayers, 2)
  return common.smoke(c)
