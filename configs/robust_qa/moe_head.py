r"""DistilBERT's encoder with a mixture of experts as its head, gated once for a window.

Build a Robust QA System with Transformer-based Mixture of Experts (arXiv:2204.09598), design A. Expected out
of domain: 53.5 F1 on validation for the paper's best combination, about 48.8 without (paper.RESULTS).
Differs: starts from random values, as DistilBERT's checkpoint and its vocabulary cannot be read: expect
far less. The gate's noise has a fixed size, Shazeer's a learned size. Importance is that of all
probabilities, not of the k chosen. The number of experts was not found in the paper. No back translation.

  stmoe train robust_qa/moe_head --config.data.files=TRAIN,VALIDATION --workdir runs/qa
    each of the two a file in SQuAD's format, FILE+FILE or a folder of them: every file is a domain
  stmoe finetune runs/qa robust_qa/moe_head --config.data.files=OTHER_TRAIN,OTHER_VALIDATION \
    --config.data.eda.files=race,duorc --config.train.steps=200 --config.checkpoint.best=average/f1@span
    on files of other domains, with augmented copies; keeps the best mean of their F1 (unverified)
  stmoe train robust_qa/moe_head:experts=0,place=middle    dense head; Switch layers in the middle
  stmoe train robust_qa/moe_head:smoke                     laptop, questions about Python's library
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.robust_qa import paper
from stmoe.configs.robust_qa import recipe

VARIANTS = ('experts=0', 'gate=mean', 'k=1', 'place=middle')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, experts=recipe.EXPERTS, k=paper.HEAD['k'],
                         gate=paper.HEAD['gate'], place='none')
  c = recipe.training(args.experts, args.place, k=args.k, gate=args.gate)
  return common.smoke_spans(c) if args.smoke else c.lock()
