r"""MoFME, its baseline and a dense twin on handwritten digits in rain, behind drops and in haze: minutes.

The file trains no experiment of the paper (arXiv:2312.16610), which prints no such result. 1,797 digits of
scikit-learn, enlarged to 16 x 16, each in one of three weathers; patches of 4 x 4, two blocks, 8 experts.

  stmoe train mofme/digits --workdir runs/mofme
  stmoe train mofme/digits:method=naive                    whole experts; or method=dense
  stmoe train mofme/digits:passes=0                        the softmax in training, too
  stmoe train mofme/digits:released=True                   the released off-by-one among experts
  stmoe train mofme/digits:smoke                           half a minute

Expected: MoFME within 0.2 dB of the naive mixture with fewer parameters, both above dense by a small margin.
Measured, one seed, on the held-out fifth: passes=0 27.1 dB, naive 26.9, dense 25.5. The weights of the
paper's router in training, passes=5, give 26.4: evaluation takes other weights than training (u).
Differs: sizes, data and schedule are this project's choice; no perceptual loss.
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.mofme import recipe

VARIANTS = ('method=naive', 'method=dense', 'passes=0', 'released=True')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='mofme', experts=8, k=2, passes=5, released=False)
  c = common.config()
  c.model = dict(name='restorer', d_model=64, layers=(('m', 2),), num_heads=4, head_dim=16, image_size=16,
                 patch_size=4, channels=1, stem=16, tail=16)
  c.blocks = dict(m=recipe.block(args.method, 256, args.experts, args.k, args.passes, args.released))
  c.data = dict(task='digits', objective='restoration', image_size=16, channels=1, shuffle=True,
                eval_split='validation')
  c.loss = dict(name='pixels')
  c.losses = {}
  c.optimizer = common.adamw(b2=0.999, weight_decay=0.01)
  c.schedule = dict(name='cosine', peak=2e-3, warmup_steps=50)
  c.train.update(steps=600, batch_size=64, clip=1.0, log_every=50, stats_every=200)
  c.eval.update(every=200, batch_size=128)
  c.checkpoint.update(every=200, best='eval/psnr')
  if args.smoke:
    c.train.update(steps=40, log_every=10, stats_every=20)
    c.eval.update(every=20)
    c.checkpoint.update(every=20)
  return c.lock()
