r"""V-MoE S/32, the last two odd blocks sparse, on ILSVRC2012 from scratch: 300 epochs.

Scaling Vision with Sparse Mixture of Experts (arXiv:2106.05974), released configuration
vmoe_s32_last2_ilsvrc2012_randaug_light1. Expected accuracy: 76.8 on the last 1 % of the training images, and
73.1 on the validation split (paper.RELEASED; ReaL 74.4, V2 59.2). This file evaluates the validation split.
Differs: no RandAug and no mixup, so expect less; trains on all training images; initial values
N(0, 1/fan-in), not Xavier's; decay shrinks the table of positions too; experts have no dropout after their
second matrix; outputs of attention and dense layers have no dropout either way. eval/loss is the softmax's.

  stmoe train vmoe/ilsvrc2012 --workdir runs/vmoe_s32      the data: TensorFlow Datasets' imagenet2012
  stmoe train vmoe/ilsvrc2012:experts=0                    ViT-S/32, its dense twin
  stmoe train vmoe/ilsvrc2012:smoke                        laptop, on scikit-learn's digits, about a minute
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.vmoe import paper
from stmoe.configs.vmoe import recipe

VARIANTS = ('experts=0', 'last=4')


def get_config(arg=''):
  facts = paper.ILSVRC2012
  args = arguments.parse(arg, smoke=False, experts=paper.ROUTING['released_experts'], last=facts['last'])
  size = dict(paper.SIZES[facts['size']], peak=facts['peak'], clip=facts['clip'])
  c = recipe.training(
      size, 'tfds:imagenet2012', recipe.epochs('imagenet2012', facts['epochs'], facts['batch_size']),
      facts['batch_size'], labels=paper.DATA['imagenet2012']['labels'], experts=args.experts, last=args.last,
      head_bias=facts['head_bias'], representation=size['d_model'], expert_dropout=facts['expert_dropout'],
      capacity_factor=(paper.ROUTING['capacity_factor'], facts['eval_capacity_factor']),
      crop=facts['crop'], central=facts['central'], flip=True)
  return common.smoke_images(c) if args.smoke else c.lock()
