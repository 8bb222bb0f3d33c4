r"""Soft MoE S/16 to H/14: the last half of the blocks mixes all tokens of an image into 128 or 256 slots.

From Sparse to Soft Mixtures of Experts (arXiv:2308.00951), released configuration pretrain_jft4b. Expected
precisions are not at hand (paper.REPORTED).
Differs: JFT-4B is not public; ImageNet-21k stands in, with its labels and for 300,000 steps (this project's
choice). The schedule is the released linear one, not the reciprocal square root with a cool-down. Queries and
keys are not normalised; initial values N(0, 1/fan-in), not Xavier's.

  stmoe train soft_moe/sizes:size=b16 --workdir runs/soft_moe
  stmoe train soft_moe/sizes:experts=0                     ViT, its dense twin
  stmoe train soft_moe/sizes:smoke                         laptop, on scikit-learn's digits, about a minute
  size = s16 | s14 | b16 | l16 | h14; slots: of each expert
"""

import math

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.soft_moe import paper

VARIANTS = ('size=h14', 'slots=2', 'experts=0')
LABELS = 21_843                    # of ImageNet-21k
STEPS = 300_000


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, size='s16', experts=-1, slots=paper.SLOTS)
  size = common.choose('size', args.size, paper.SIZES)
  experts = size['experts'] if args.experts < 0 else args.experts
  dense = size['layers'] - size['last'] if experts else size['layers']
  mlp = dict(d_ff=size['d_ff'], activation='gelu', use_bias=True, init_scale=1.0)

  c = common.config()
  c.model = dict(name='vit', vocab_size=LABELS, d_model=size['d_model'], num_heads=size['num_heads'],
                 head_dim=size['d_model'] // size['num_heads'],
                 layers=(('d', dense),) + ((('m', size['last']),) if experts else ()),
                 image_size=paper.IMAGE_SIZE, patch_size=size['patch_size'], channels=3,
                 pooling=paper.POOLING, representation=0, head_bias=-math.log(LABELS), dtype='bfloat16',
                 scan_layers=True, remat='elementwise')
  c.blocks = dict(d=dict(layer='dense', **mlp))
  if experts:
    c.blocks.m = dict(layer='moe', executor='einsum', group_size=None,
                      router=dict(name='soft_moe', num_experts=experts, slots=args.slots),
                      experts=dict(name='mlp', identical=True, **mlp))
  c.data = common.images('tfds:imagenet21k', paper.IMAGE_SIZE, crop=0.05, central=224 / 256, flip=True)
  c.loss.sigmoid = True
  optim = paper.OPTIM
  c.optimizer = dict(name='adamw', b1=optim['b1'], b2=optim['b2'], weight_decay=optim['weight_decay'])
  c.groups = dict(head=dict(weight_decay=optim['head_weight_decay']))
  c.schedule = dict(name='linear', peak=paper.LINEAR['peak'], warmup_steps=optim['warmup_steps'],
                    end_fraction=paper.LINEAR['end_rate'])
  batch_size = paper.TRAINING['batch_size']
  c.train.update(steps=STEPS, batch_size=batch_size, clip=optim['clip'], log_every=100, stats_every=1000)
  c.eval.update(every=1000, batch_size=batch_size)
  c.checkpoint.update(every=1000)
  c.mesh.update(data=1, expert=-1 if experts else 1)
  if not experts:
    c.mesh.data = -1
  return common.smoke_images(c) if args.smoke else c.lock()
