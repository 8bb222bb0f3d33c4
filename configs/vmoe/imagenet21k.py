r"""V-MoE B/16, every second block sparse, on ImageNet-21k: 300 epochs.

Scaling Vision with Sparse Mixture of Experts (arXiv:2106.05974), released configuration
pretrain_imagenet21k. The paper does not print the accuracy on ImageNet-21k. Expected after fine-tuning on
ILSVRC2012 at 384 pixels (vmoe/finetune): 85.6 on the validation split (paper.RELEASED).
Differs: no RandAug and no mixup; where the set has one split, its last tenth is held out, not its first
102,400 images; initial values N(0, 1/fan-in), not Xavier's; decay shrinks the table of positions too.
eval/loss is the softmax's. The set is TensorFlow Datasets' imagenet21k, which a user prepares.

  stmoe train vmoe/imagenet21k --workdir runs/vmoe_b16
  stmoe train vmoe/imagenet21k:size=l16
  stmoe train vmoe/imagenet21k:smoke                       laptop, on scikit-learn's digits, about a minute
  size = s32 | b32 | b16 | l32 | l16 | h14
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.vmoe import paper
from stmoe.configs.vmoe import recipe

VARIANTS = ('size=s32', 'size=h14')


def get_config(arg=''):
  facts = paper.IMAGENET21K
  args = arguments.parse(arg, smoke=False, size=facts['size'], experts=paper.ROUTING['released_experts'])
  size = dict(common.choose('size', args.size, paper.SIZES), clip=facts['clip'])
  c = recipe.training(
      size, 'tfds:imagenet21k', recipe.epochs('imagenet21k', facts['epochs'], facts['batch_size']),
      facts['batch_size'], labels=paper.DATA['imagenet21k']['labels'], experts=args.experts,
      every=facts['every'], head_bias=facts['head_bias'], crop=facts['crop'], central=facts['central'],
      flip=True)
  return common.smoke_images(c) if args.smoke else c.lock()
