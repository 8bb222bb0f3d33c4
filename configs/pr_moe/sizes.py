r"""PR-MoE as published: a residual expert, and twice the experts in the last two sparse layers.

DeepSpeed-MoE (arXiv:2201.05596), GPT models of 350M and 1.3B. Expected zero-shot LAMBADA and PIQA at 350M:
dense 52.0, 69.3; standard MoE of 128 experts (13B) 62.7, 74.6; PR-MoE (4B) 63.7, 74.0 (paper.REPORTED).
layers=21 is the student: its loss is dict(name='pr_moe', inner=dict(name='ids'), run=RUN), of PR-MoE's RUN.
A student that begins with blocks of RUN is `stmoe compress RUN pr_moe`.
Differs: C4/en and a vocabulary trained on it instead of their corpus; rotary positions and RMSNorm instead
of GPT's; betas, weight decay, clip and initial variances are this project's.

  stmoe train pr_moe/sizes --config.mesh.expert=32
  stmoe train pr_moe/sizes:size=1.3b,model=moe
  stmoe train pr_moe/sizes:smoke                      laptop, about a minute
  size = 350m | 1.3b; model = pr_moe | moe | dense; layers = 24 | 21; wide = 2: widest sparse layers
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.pr_moe import paper
from stmoe.configs.pr_moe import recipe

VARIANTS = ('size=1.3b', 'model=moe', 'model=dense', 'layers=21', 'wide=0')


def blocks(model, size):
  """Returns the sparse layers of `model` by letter."""
  width, experts = size['d_model'], size['experts']
  if model == 'pr_moe':
    return dict(m=recipe.sparse(width, experts), p=recipe.sparse(width, 2 * experts))
  standard = recipe.sparse(width, size['moe'], residual=False) if model == 'moe' else recipe.dense(width)
  return dict(m=standard)


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, size='350m', model='pr_moe', layers=24, wide=paper.WIDE)
  size = common.choose('size', args.size, paper.SIZES)
  common.choose('model', args.model, dict.fromkeys(('pr_moe', 'moe', 'dense')))
  pattern = recipe.pyramid(args.layers, args.wide if args.model == 'pr_moe' else 0)
  found = {letter: block for letter, block in blocks(args.model, size).items()
           if any(letter in letters for letters, _ in pattern)}
  c = recipe.pretraining(size, pattern, found)
  return recipe.smoke(c) if args.smoke else c.lock()
