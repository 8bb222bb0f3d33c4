r"""At most 2 or 3 experts per token: the entropy-regularised cap on expert choice, c = 2.

Mixture-of-Experts with Expert Choice Routing (arXiv:2202.09368), section 3.3 and paper.REPORTED_CAPPED.
Expected (mean of 11 fine-tuned tasks, 0.1B with 64 experts): cap 2 83.2, cap 3 84.0, none 84.0, hash
layers 81.3.
Differs: the encoder of T5 1.1 base on C4 instead of a decoder, which leaks (see expert_choice/sizes).
cap=0 runs without a cap.

  stmoe train expert_choice/capped:cap=3
  stmoe train expert_choice/capped:smoke              laptop, about a minute
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.expert_choice import paper
from stmoe.configs.expert_choice import recipe

# Arguments beside '' and 'smoke': an argument for each other path through this file.
VARIANTS = ('cap=3', 'cap=0')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, cap=2)
  c = recipe.pretraining('base', 64, steps=100_000, capacity_factor=(paper.CAPACITY_FACTOR,) * 2,
                         encoder_router=dict(max_experts_per_token=args.cap or None,
                                             entropy=paper.CAPPED['entropy'], sweeps=paper.CAPPED['sweeps']))
  return common.smoke(c) if args.smoke else c.lock()
