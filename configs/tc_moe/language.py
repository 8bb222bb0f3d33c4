r"""TC-MoE in the language model of LibMoE's sweeps: experts with factor 1, -1 or 0.

TC-MoE (ICLR 2025) in the model and with the losses of LibMoE (arXiv:2411.00918). Expected: the share of null
choices (metric null_share) grows with the reward; nothing is printed for this model, whose layer in LibMoE
raises an error in training.
Differs: C4/en instead of SlimPajama; RMSNorm; initial values of attention and routers are this project's;
signs and repeated experts are those of the formula, which released code loses; the balance loss is of
sequences, in LibMoE it counts the batch.

  stmoe train tc_moe/language --workdir runs/tc_moe
  stmoe train tc_moe/language:reward=0.01             more nulls
  stmoe train tc_moe/language:null_bias=0.0           nulls in reach from the start
  stmoe train tc_moe/language:smoke                   laptop, about a minute
"""

from stmoe.configs import arguments
from stmoe.configs.libmoe import recipe
from stmoe.configs.tc_moe import paper

VARIANTS = ('reward=0.01', 'null_bias=0.0')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, reward=paper.REWARD, null_bias=paper.ROUTER['null_bias'])
  block = recipe.sparse('tc_moe', null_bias=args.null_bias, negative_bias=paper.ROUTER['negative_bias'])
  losses = dict(balance=paper.BALANCE, z=paper.Z, reward=args.reward)
  c = recipe.language(block, losses)
  return recipe.smoke(c) if args.smoke else c.lock()
