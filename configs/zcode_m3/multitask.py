r"""Z-code M3 on a laptop: translation and denoising, random token selection, experts of several models.

Z-code M3 (arXiv:2109.10465), 8 experts in every second of 4 layers, on two files: line i of one is the
translation of line i of the other. Both files are denoised as well.

  stmoe train zcode_m3/multitask --config.data.files=TRAIN.de,TRAIN.en
  stmoe train zcode_m3/multitask:tasks=mt,keep=order --config.data.files=TRAIN.de,TRAIN.en
  stmoe train zcode_m3/multitask:experts=4 --workdir runs/a --config.data.files=TRAIN.de,TRAIN.en
  stmoe train --like runs/a --workdir runs/b --config.seed=1
  stmoe upcycle runs/a runs/b zcode_m3/multitask --workdir runs/ab --config.train.steps=400 \
      --config.data.files=TRAIN.de,TRAIN.en
  stmoe compress runs/ab prune:keep=0.5 --workdir runs/pruned
  stmoe train zcode_m3/multitask:smoke                 the standard library; laptop, half a minute
  tasks = both | mt
  keep = random (random token selection) | order
  experts = 8 | ... | 0 (dense)

Expected: with both tasks a lower loss of translation at equal steps of translation where pairs are few;
random token selection no worse than order, which drops the ends of groups. None of this was measured here.
Differs: bytes, T5's positions and norms, capacity factor 0.75 so that tokens are dropped; all else is
unverified. The tag of texts is of no language, since both files are one task.
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.zcode_m3 import recipe

VARIANTS = ('tasks=mt', 'keep=order', 'experts=4', 'experts=0')
LENGTH = 128
SIZE = dict(encoder=4, decoder=2, d_model=128, d_ff=256, num_heads=2, head_dim=64, vocab_size=384)
TASKS = dict(both=(('pairs', 1.0), ('text', 1.0)), mt=(('pairs', 1.0),))


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, experts=8, tasks='both', keep='random')
  mixture = common.choose('tasks', args.tasks, TASKS)
  c = recipe.training(args.experts, args.keep, SIZE, group_size=2 * LENGTH)
  if args.experts:
    c.blocks.m.router.capacity_factor = (0.75, 2.0)
  c.data = recipe.data(mixture, LENGTH, 'bytes', ('pairs=<to>',))
  c.schedule.update(peak=2e-3, warmup_steps=50)
  c.train.update(steps=250, batch_size=16, clip=1.0, log_every=10, stats_every=50)
  c.eval.update(every=50, batches=20, batch_size=16)
  c.checkpoint.update(every=50)
  return recipe.smoke(c, args.tasks) if args.smoke else c.lock()
