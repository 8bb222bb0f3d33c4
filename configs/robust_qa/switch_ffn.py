r"""DistilBERT's encoder with Switch layers in the place of its feed-forward layers, and a dense head.

Build a Robust QA System with Transformer-based Mixture of Experts (arXiv:2204.09598), design B. Expected out
of domain: 53.5 F1 on validation for the paper's best combination, about 48.8 without (paper.RESULTS).
Differs: starts from random values, as DistilBERT's checkpoint and its vocabulary cannot be read: expect
far less. Which blocks are sparse, with how many experts, was not found in the paper. No back translation.

  stmoe train robust_qa/switch_ffn --config.data.files=TRAIN,VALIDATION --workdir runs/qa
  stmoe train robust_qa/switch_ffn:place=middle            or all, every_second
  stmoe train robust_qa/moe_head:experts=0                 the dense twin
  stmoe upcycle runs/dense robust_qa/switch_ffn            experts begin as copies of the dense twin's layers
  stmoe train robust_qa/switch_ffn:smoke                   laptop, questions about Python's library
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.robust_qa import recipe

VARIANTS = ('place=middle', 'place=every_second', 'experts=4')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, experts=recipe.EXPERTS, place='all')
  c = recipe.training(0, args.place, args.experts)
  return common.smoke_spans(c) if args.smoke else c.lock()
