r"""Chained experts against one pass through more, at equal compute: 4 layers, 63 experts and one shared.

Chain of Experts (arXiv:2506.18945), the released configuration. Expected validation loss after 1000 steps:
CoE(2,4,64) 1.12, the baseline of equal compute MoE(8,64) 1.20, CoE(2,4,48) equal to the latter; one gate for
both iterations is worse than the baseline (paper.REPORTED).
Differs: give MetaMathQA's text, or any, as data.files: what exactly was trained on is not stated; a
vocabulary trained on it; no YaRN; gates begin normal instead of uniform, matrices with F rows with 0.024
instead of 0.02. The printed 544M are about the routed experts alone: all is 781M. The baseline has a skip
connection around its layers, as DeepSeek-V2.

  stmoe train chain_of_experts/sizes --config.data.files=math.txt
  stmoe train chain_of_experts/sizes:iterations=1 --config.data.files=math.txt        the baseline
  stmoe train chain_of_experts/sizes:choices=16 --config.data.files=math.txt          CoE(2,8,64)
  stmoe train chain_of_experts/sizes:smoke                                            laptop, about a minute
  choices: experts of a token in all iterations together, the shared one counted in each
  gate = each | one; residual = previous | initial | none; outer: skip connection around the layer
"""

from stmoe.configs import arguments
from stmoe.configs.chain_of_experts import paper
from stmoe.configs.chain_of_experts import recipe

VARIANTS = ('iterations=1', 'experts=48', 'choices=16', 'choices=16,iterations=1', 'gate=one',
            'residual=initial', 'residual=none,outer', 'choices=12,iterations=3', 'iterations=1,layers=8')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, iterations=paper.ITERATIONS,
                         choices=paper.ITERATIONS * paper.PER_TURN, experts=paper.SIZE['experts'],
                         gate='each', residual='previous', outer=False, layers=paper.SIZE['layers'])
  made = recipe.block(args.experts, args.choices, args.iterations, args.gate, args.residual, args.outer)
  c = recipe.pretraining(made, args.layers)
  return recipe.smoke(c) if args.smoke else c.lock()
