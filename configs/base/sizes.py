r"""BASE layers at full size: 44B parameters, and with smaller and larger experts 18.8B and 117B.

BASE Layers (arXiv:2103.16716), section 4: a decoder of 2048 x 8192 with one BASE layer in the middle, 128
experts of 10, 4 or 27 sublayers, and as many dense blocks as make equal FLOPs.
Expected: the paper prints no table of losses. Its curves show validation perplexity against time. There BASE
is better than dense models from 32 GPUs on, level with a top-2 mixture and better than Switch. The three
sizes differ little. Speed on 128 GPUs (paper.SPEED): 545k tokens/s, dense 600k.
Training loss is under balanced assignment, which sees later tokens (allow_causal=True): no
language-modelling score. Evaluation is greedy and causal.
Differs: C4/en for the RoBERTa corpus and CC-100; rotary positions and RMS norms in the dense blocks;
experts' gradients are not clipped, and their scale is that of the loss. (The reference multiplies it by the
factor that clips the other gradients and by the number of workers.) 56,000 steps and Adam's betas are not
printed.

  stmoe train base/sizes --workdir runs/base
  stmoe train base/sizes:size=small
  stmoe train base/sizes:smoke                        laptop, about a minute
  size = standard | small | large; assignment = auction | greedy_balanced; shuffle=False does not mix groups
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.base import paper
from stmoe.configs.base import recipe

VARIANTS = ('size=small', 'size=large', 'shuffle=False', 'assignment=greedy_balanced')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, size='standard', assignment='auction', shuffle=True)
  size = common.choose('size', args.size, paper.SIZES)
  c = recipe.pretraining(paper.BACKBONE, size['layers'], size['sublayers'], shuffle=args.shuffle,
                         assignment=args.assignment)
  return recipe.smoke(c) if args.smoke else c.lock()
