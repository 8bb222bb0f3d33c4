r"""A Vision Transformer upcycled: its last half of MLPs become 32 experts, which choose tokens.

Sparse Upcycling (arXiv:2212.05055). `dense` is the start; the sparse run goes on with its step, its schedule
and its optimizer state, which helps in vision. Weights of a token's experts are over their sum.

  stmoe train upcycling/vit:dense --workdir runs/dense
  stmoe upcycle runs/dense upcycling/vit --workdir runs/sparse --optimizer reuse
  stmoe train upcycling/vit --workdir runs/sparse
  stmoe train upcycling/vit:smoke                     the sparse model from scratch; laptop, about a minute
  size = b32 | b16 | l16

All three commands with `smoke` run on a laptop. Expected: a loss that jumps by what tokens lose that no
expert chose. Then, for B/16, one percent more in 10-shot accuracy after 13 % of the dense training again,
where dense training needs 58 % (paper.REPORTED).
Differs: JFT-300M is not public, ImageNet-21k stands in, with its losses and head bias in V-MoE; groups of 8
images, batch and rate of the schedule are this project's. 10-shot accuracy is not measured here.
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.upcycling import paper
from stmoe.configs.vmoe import paper as vmoe
from stmoe.configs.vmoe import recipe

VARIANTS = ('dense', 'size=b32', 'dense,size=l16')
SIZES = ('b32', 'b16', 'l16')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, dense=False, size='b16')
  size = vmoe.SIZES[common.choose('size', args.size, {name: name for name in SIZES})]
  facts, data = paper.RECIPE, vmoe.IMAGENET21K
  epochs = paper.OPTIM['epochs_vit']
  number = epochs['dense'] + (0 if args.dense else epochs['extra'])
  c = recipe.training(
      size, 'tfds:imagenet21k', recipe.epochs('imagenet21k', number, data['batch_size']), data['batch_size'],
      labels=vmoe.DATA['imagenet21k']['labels'], experts=0, head_bias=data['head_bias'], crop=data['crop'],
      central=data['central'], flip=True)
  half = size['layers'] // 2
  c.model.update(pooling='mean', layers=(('d', half), ('d' if args.dense else 'm', half)))
  c.optimizer = dict(name='adafactor', decay_rate=0.8, clipping_threshold=1.0)
  c.schedule = dict(name='rsqrt', base=1.0, hold_steps=10_000)
  if not args.dense:
    tokens = recipe.tokens(224, size['patch_size']) - 1              # no class token
    router = dict(name=facts['encoder'], num_experts=facts['experts'], normalize=facts['normalize']['vit'],
                  capacity_factor=(facts['capacity_factor'],) * 2)
    c.blocks.m = common.moe(router, size['d_ff'], group_size=vmoe.ROUTING['images_per_group'] * tokens,
                            activation='gelu', use_bias=True)
    c.blocks.m.executor = 'gather'
    c.mesh.update(data=1, expert=-1)
  if args.smoke:
    common.smoke_images(c).unlock()
    c.train.steps = 20 if args.dense else 30
    c.optimizer.min_dim_size_to_factor = 64      # slots of narrow matrices are those of experts, too
  return c.lock()
