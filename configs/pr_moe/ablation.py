r"""What PR-MoE is made of: where experts are, and what a residual expert is worth.

DeepSpeed-MoE (arXiv:2201.05596), section 4, at 350M. Expected direction (the paper draws curves): experts in
the second half of the layers beat experts in the first half; a residual expert with one routed one is as
good as top-2 of equal experts, and faster; the pyramid is as good as as many experts everywhere.
Differs: 32 experts a layer unless the name says otherwise; data and optimizer as in pr_moe/sizes.

  stmoe train pr_moe/ablation:model=second_half
  stmoe train pr_moe/ablation:model=residual,mix=sum   y = m + r, without learned coefficients
  stmoe train pr_moe/ablation:smoke                    laptop, about a minute
  model = residual | top1 | top2 | first_half | second_half | pyramid (without residual experts)
  mix = learned | sum
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.pr_moe import paper
from stmoe.configs.pr_moe import recipe

VARIANTS = ('model=top1', 'model=top2', 'model=first_half', 'model=second_half', 'model=pyramid', 'mix=sum')
EXPERTS = 32
EVERYWHERE = recipe.pyramid(24, 0)

# name -> (pattern, fields of the sparse layers by letter; the number of experts comes first).
MODELS = dict(
    residual=(EVERYWHERE, dict(m=(EXPERTS, 1, True))),
    top1=(EVERYWHERE, dict(m=(EXPERTS, 1, False))),
    top2=(EVERYWHERE, dict(m=(EXPERTS, 2, False))),
    first_half=((('dm', 6), ('d', 12)), dict(m=(EXPERTS, 1, False))),
    second_half=((('d', 12), ('dm', 6)), dict(m=(EXPERTS, 1, False))),
    pyramid=(recipe.pyramid(24, paper.WIDE), dict(m=(EXPERTS, 1, False), p=(2 * EXPERTS, 1, False))),
)


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, model='residual', mix='learned')
  size = paper.SIZES['350m']
  pattern, layers = common.choose('model', args.model, MODELS)
  mix = common.choose('mix', args.mix, dict(learned='learned', sum='sum'))
  blocks = {letter: recipe.sparse(size['d_model'], *fields, mix=mix) for letter, fields in layers.items()}
  c = recipe.pretraining(size, pattern, blocks)
  return recipe.smoke(c) if args.smoke else c.lock()
