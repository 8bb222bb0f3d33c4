r"""Dense, top-2 mixture and Switch at capacity factors 2.0, 1.25 and 1.0: table 1.

Switch Transformers (arXiv:2101.03961), table 1: 128 experts, 100k steps. Expected negative log
perplexity (paper.CAPACITY): T5-Base -1.731, T5-Large -1.550, MoE-Base -1.547 / -1.559 / -1.572,
Switch-Base -1.554 / -1.553 / -1.561 at factors 2.0 / 1.25 / 1.0.
Differs: C4/en instead of its de-duplicated successor. "MoE" is GShard's top-2 with its second
expert always kept: how the paper drew it is not stated. Switch-Base+ has unknown widths and is left out.

  stmoe train switch/capacity:model=switch,cf=1.0
  stmoe train switch/capacity:model=moe,cf=2.0,smoke  laptop, about a minute
  model = switch | moe | dense | dense_large
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.switch import paper
from stmoe.configs.switch import recipe

# model -> (size, experts, router); capacity factors count slots per token, for top-2 too.
MODELS = dict(
    switch=('base', 128, dict(name='switch', jitter=paper.JITTER)),
    moe=('base', 128, dict(name='gshard', second_policy='all')),
    dense=('base', 0, {}),
    dense_large=('large', 0, {}),
)

# Arguments beside '' and 'smoke': an argument for each other path through this file.
VARIANTS = ('model=moe,cf=2.0', 'model=dense', 'model=dense_large')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, model='switch', cf=1.25)
  size, experts, router = common.choose('model', args.model, MODELS)
  c = recipe.pretraining(paper.SIZES[size], experts, paper.OPTIM['ablation_steps'],
                         router=dict(router, capacity_factor=(args.cf, 2.0)))
  c.losses.update(dict(second_place=(0.0, 'mean')) if args.model == 'moe' else {})
  return common.smoke(c) if args.smoke else c.lock()
