r"""DeepSeekMoE 16B, DeepSeek-V2-Lite, -V2 and -V3: pre-training.

DeepSeekMoE (arXiv:2401.06066), section 5; DeepSeek-V2 (arXiv:2405.04434); DeepSeek-V3 (arXiv:2412.19437).
Expected parameters 16.4B (2.8B active), 15.7B, 236B, 671B. The 16B model reaches the scores of a 7B dense
model with 40 % of its compute. V2 sends a token to 3 of 8 devices, drops choices over a device's budget
and has three balance losses. V3 has sigmoids, a selection bias and 4 of 8 nodes.
Differs: C4/en instead of their corpora. V2 and V3 have latent attention; here attention is plain, so their
counts are 15.8B, 246.9B and 688.3B (paper.py). Their steps, batch and rate are not at hand: the 16B
model's are taken, and its balance coefficient for V2-Lite. Multi-token prediction is no part of V3 here.

  stmoe train deepseek_moe/sizes:size=v3 --config.mesh.expert=64
  stmoe train deepseek_moe/sizes:size=v2,smoke                    laptop, about a minute
  size = 16b | v2_lite | v2 | v3
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.deepseek_moe import paper
from stmoe.configs.deepseek_moe import recipe

VARIANTS = ('size=v2_lite', 'size=v2', 'size=v3', 'size=v2,smoke', 'size=v3,smoke')


def router(name, size):
  """Returns the router of a size, with its fields."""
  groups, within = size.get('groups', (1, 1))
  fields = dict(k=size['k'], num_groups=groups, kept_groups=within, route_scale=size.get('route_scale', 1.0))
  if name == 'v3':
    frozen = round(paper.BIAS_FROZEN * paper.RUNS['16b']['steps'])
    return dict(name='deepseek_v3', rate=paper.BIAS_RATE, freeze_after=frozen, **fields)
  # Under a device's budget a token depends on later tokens; the paper accepts that in training.
  budget = dict(device_budget=paper.DEVICE_BUDGET, allow_causal=True) if name == 'v2' else {}
  return dict(name='deepseek_moe', **fields, **budget)


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, size='16b')
  sizes = {name: row for name, row in paper.SIZES.items() if name != 'validation'}
  size = common.choose('size', args.size, sizes)
  coefficients = paper.LOSSES['16b' if args.size == 'v2_lite' else args.size]
  losses = {name: (a or 0.0, 'sum') for name, a in zip(('balance', 'device', 'communication'), coefficients)}
  c = recipe.pretraining(size, paper.RUNS['16b'], router(args.size, size), losses)
  return recipe.smoke(c) if args.smoke else c.lock()
