r"""How the router explores: argmax, a draw from the softmax, input dropout, input jitter.

Switch Transformers (arXiv:2101.03961), appendix C. Expected: jitter best (the figures are not at hand).
Differs: C4/en instead of its de-duplicated successor; input dropout of 0.1 is this project's choice.

  stmoe train switch/exploration:policy=sample
  stmoe train switch/exploration:policy=dropout,smoke laptop, about a minute
  policy = argmax | sample | dropout | jitter
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.switch import paper
from stmoe.configs.switch import recipe

POLICIES = dict(
    argmax=dict(name='switch', jitter=0.0),
    sample=dict(name='switch', exploration='sample', jitter=0.0),
    dropout=dict(name='switch', jitter=0.0, input_dropout=0.1),
    jitter=dict(name='switch', jitter=paper.JITTER),
)

# Arguments beside '' and 'smoke': an argument for each other path through this file.
VARIANTS = ('policy=sample', 'policy=dropout', 'policy=argmax')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, policy='jitter', experts=128)
  router = common.choose('policy', args.policy, POLICIES)
  c = recipe.pretraining(paper.SIZES['base'], args.experts, paper.OPTIM['ablation_steps'], router=router)
  return common.smoke(c) if args.smoke else c.lock()
