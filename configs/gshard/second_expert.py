r"""What becomes of the second choice: always sent, by chance, above a threshold, sampled, or never.

GShard (arXiv:2006.16668), section 2.2 (local dispatching by random routing): the paper keeps the second
expert with probability 2 g_2 and prints no comparison. Expected: random routing lowers the second choices
over capacity and the use of slots at almost no loss.
Differs: model and data are as in gshard/sizes:size=12.5b, with their differences; 100k steps.

  stmoe train gshard/second_expert:policy=random,threshold=0.2      Mesh-TensorFlow's threshold
  stmoe train gshard/second_expert:policy=sampling,smoke            laptop, about a minute
  policy = random | all | threshold | sampling | none
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.gshard import paper
from stmoe.configs.gshard import recipe

# Arguments beside '' and 'smoke': an argument for each other path through this file.
VARIANTS = ('policy=all', 'policy=threshold', 'policy=sampling', 'policy=none')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, policy='random', threshold=paper.THRESHOLD,
                         cf=paper.CAPACITY_FACTOR)
  size = paper.SIZES['12.5b']
  c = recipe.pretraining(paper.WIDTHS, size['layers'], size['experts'], 2**20, 100_000,
                         router=dict(second_policy=args.policy, threshold=args.threshold,
                                     capacity_factor=(args.cf, args.cf)))
  return common.smoke(c) if args.smoke else c.lock()
