r"""One, two or three experts per token at several capacity factors, with and without batch priority.

ST-MoE (arXiv:2202.08906), routing algorithms and batch-prioritised routing: 32 experts, 100k steps.
Expected (paper.ALGORITHMS, paper.BATCH_PRIORITY), for example at train / eval factor 1.25 / 2: top-1 -1.373,
top-2 -1.369; at 2 / 3 top-2 -1.359, top-3 -1.356; at 0.75 / 0.75 top-1 -1.428, with priority -1.409.
Differs: C4/en. Priority is used in the encoder alone: in a decoder it would let later tokens
decide. top-1 keeps its raw probability: normalised, it would be the constant 1.

  stmoe train st_moe/algorithms:top=1,cf=0.75,eval_cf=0.75,priority
  stmoe train st_moe/algorithms:top=3,smoke           laptop, about a minute
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.st_moe import paper
from stmoe.configs.st_moe import recipe

# Arguments beside '' and 'smoke': an argument for each other path through this file.
VARIANTS = ('top=1,priority', 'top=3,cf=2.0,eval_cf=3.0')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, top=2, cf=1.25, eval_cf=2.0, priority=False)
  c = recipe.pretraining(paper.SIZES['l'], paper.OPTIM['ablation_steps'],
                         router=dict(k=args.top, normalize_gates=args.top > 1,
                                     capacity_factor=(args.cf, args.eval_cf)),
                         encoder_router=dict(batch_priority=args.priority))
  return common.smoke(c) if args.smoke else c.lock()
