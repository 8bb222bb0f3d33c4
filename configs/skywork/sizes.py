r"""Skywork-MoE as printed: 146B parameters, 16 experts, top-2, all layers sparse.

Skywork-MoE (arXiv:2406.06563). Expected MMLU 77.4, GSM8K 76.1 (paper.REPORTED), of a model upcycled from
Skywork-13B. Expected parameters 146B (22B active).
Differs: trained from scratch on C4/en; the model it was upcycled from and its corpus are not at hand.
Optimizer, schedule, batch, steps and capacity factor are this project's; the report gives none.

  stmoe train skywork/sizes --config.mesh.model=8
  stmoe train skywork/sizes:smoke                     laptop, about a minute
"""

from stmoe.configs import arguments
from stmoe.configs.skywork import paper
from stmoe.configs.skywork import recipe


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False)
  c = recipe.pretraining(paper.SIZE, steps=250_000)
  return recipe.smoke(c) if args.smoke else c.lock()
