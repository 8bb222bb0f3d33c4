r"""V-MoE S/32 to H/14 and 15B as the paper trained them on JFT-300M: 32 experts, every second or last blocks.

Scaling Vision with Sparse Mixture of Experts (arXiv:2106.05974), section 3. Expected precision at 1 on JFT
and accuracy fine-tuned on ImageNet: paper.REPORTED (unverified); S/32 34.00 and 77.08, H/14 60.12 and 88.23.
Differs: JFT-300M is not public, ImageNet-21k stands in, so precisions do not compare; steps, batch and head
bias are this project's choice (the released ImageNet-21k choices for 30 epochs); 15B with AdamW; initial
values N(0, 1/fan-in), not Xavier's; decay shrinks the table of positions too.

  stmoe train vmoe/sizes:size=l16 --config.mesh.data=4
  stmoe train vmoe/sizes:size=h14,last=5                   the last five odd blocks sparse
  stmoe train vmoe/sizes:smoke                             laptop, on scikit-learn's digits, about a minute
  size = s32 | b32 | b16 | l32 | l16 | h14 | 15b; experts=0: ViT
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.vmoe import paper
from stmoe.configs.vmoe import recipe

VARIANTS = ('size=h14,last=5', 'size=15b', 'size=s32,experts=0')
# Patches of 14 pixels and H's learning rate for the 15B are this project's choice.
SIZES = paper.SIZES | {'15b': dict(paper.V_MOE_15B, patch_size=14, peak=3e-4, clip=10.0)}
EPOCHS = 30


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, size='b16', experts=paper.ROUTING['experts'], last=0)
  size, facts = common.choose('size', args.size, SIZES), paper.IMAGENET21K
  batch_size = facts['batch_size']
  c = recipe.training(
      size, 'tfds:imagenet21k', recipe.epochs('imagenet21k', EPOCHS, batch_size), batch_size,
      labels=paper.DATA['imagenet21k']['labels'], experts=args.experts, every=0 if args.last else 2,
      last=args.last, head_bias=facts['head_bias'], crop=facts['crop'], central=facts['central'], flip=True)
  return common.smoke_images(c) if args.smoke else c.lock()
