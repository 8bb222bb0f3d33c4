r"""Z-code M3 in its size: 10B parameters, 64 experts in every second layer, translation and denoising.

Z-code M3 (arXiv:2109.10465). Expected: 10B parameters; the paper's results are not at hand (paper.REPORTED).
Differs: WMT'14's two directions and C4 instead of 50 languages; T5's positions and norms; sizes, factors,
optimizer and the mixture's temperature are unverified, peak, batches and steps are this project's.

  stmoe train zcode_m3/sizes --config.mesh.expert=64
  stmoe train zcode_m3/sizes:tasks=mt                  translation alone
  stmoe train zcode_m3/sizes:smoke                     laptop, about a minute
  experts = 64 | 0 (dense)
  tasks = both | mt
  keep = random (random token selection) | order
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.zcode_m3 import paper
from stmoe.configs.zcode_m3 import recipe

VARIANTS = ('experts=0', 'tasks=mt', 'keep=order')
LENGTH, BATCH = 256, 4096
TASKS = dict(both=('c4', 'wmt14_en_de', 'wmt14_en_fr'), mt=('wmt14_en_de', 'wmt14_en_fr'))
TAGS = dict(c4='<en>', wmt14_en_de='<de>', wmt14_en_fr='<fr>')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, experts=paper.SIZE['experts'], tasks='both', keep='random')
  names = common.choose('tasks', args.tasks, TASKS)
  c = recipe.training(args.experts, args.keep, paper.SIZE, group_size=8 * LENGTH)
  c.model.update(dtype='bfloat16', remat='full')
  if args.experts:
    c.blocks.m.executor = 'gather'
  c.data = recipe.data(names, LENGTH, f'train:{paper.SIZE["vocab_size"] - 100}',
                       tuple(f'{name}={TAGS[name]}' for name in names),
                       mixture_temperature=paper.MIXTURE['temperature'])
  c.train.update(steps=100_000, batch_size=BATCH, clip=1.0, log_every=100, stats_every=1000)
  c.eval.update(every=2000, batches=16, batch_size=BATCH)
  c.checkpoint.update(every=2000)
  c.mesh.expert = 8
  return recipe.smoke(c, args.tasks) if args.smoke else c.lock()
