r"""MoFME at its released size: 240 x 240 pixels, two blocks, 16 experts of which 2 are active.

Efficient Deweather Mixture-of-Experts (arXiv:2312.16610), sizes and rates of the released scripts. The images
are the user's, an .npz (see stmoe/data/sources/images.py); their weather is drawn.

  stmoe train mofme/weather --config.data.files=IMAGES.npz --workdir runs/mofme
  stmoe train mofme/weather:method=naive                   whole experts, the paper's baseline
  stmoe train mofme/weather:released=True                  the released off-by-one among experts
  stmoe train mofme/weather:smoke                          laptop, on scikit-learn's digits, about a minute
  method = mofme | naive | dense

Expected: 0.1 to 0.2 dB over its baselines with 72 % fewer parameters than the conventional mixture
(paper.REPORTED, the abstract). Here 16 experts have 58 % fewer than method=naive, and 65 % fewer in the two
blocks alone.
Differs: the weather is drawn, where the paper has pairs of photographs. No perceptual loss: it needs VGG-16's
weights. Evaluation is of whole crops, not overlapping ones. The decay of AdamW is not stated, ours is 0.01.
Gradients are cut to norm 10; the released code cuts those of the step before.
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.mofme import paper
from stmoe.configs.mofme import recipe

VARIANTS = ('method=naive', 'method=dense', 'released=True', 'experts=4', 'k=4', 'passes=0')
STEPS = 50_000                         # 200 epochs of 16,000 images; how many the paper has is not known


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='mofme', experts=paper.EXPERTS[-1], k=paper.K[0],
                         passes=paper.PASSES, released=False)
  size, optim = paper.SIZE, paper.OPTIM
  c = common.config()
  c.model = dict(name='restorer', d_model=size['d_model'], layers=(('m', size['depth']),),
                 num_heads=size['num_heads'], head_dim=size['head_dim'], image_size=paper.CROP,
                 patch_size=size['patch_size'], channels=3, stem=size['stem'], tail=size['tail'],
                 dropout_rate=paper.DROPOUT)
  c.blocks = dict(m=recipe.block(args.method, size['d_ff'], args.experts, args.k, args.passes, args.released,
                                 executor='gather'))
  c.data = dict(task='npz', objective='restoration', image_size=paper.CROP, channels=3, crop=0.25,
                symmetries=True, shuffle=True, eval_split='validation')
  c.loss = dict(name='pixels')
  c.losses = {}
  c.optimizer = common.adamw(b2=optim['b2'], weight_decay=0.01)
  c.schedule = dict(name='cosine', peak=optim['peak'], end_fraction=optim['end_rate'] / optim['peak'],
                    warmup_steps=STEPS * optim['warmup_epochs'] // optim['epochs'])
  c.train.update(steps=STEPS, batch_size=optim['batch_size'], clip=10.0, log_every=100, stats_every=1000)
  c.eval.update(every=1000, batch_size=optim['batch_size'])
  c.checkpoint.update(every=1000, best='eval/psnr')
  if not args.smoke:
    return c.lock()
  c.model.update(d_model=32, num_heads=2, head_dim=16, image_size=16, patch_size=4, channels=1, stem=8,
                 tail=16)
  block = c.blocks.m
  block.update(d_ff=64) if 'd_ff' in block else block.experts.update(d_ff=64)
  c.data.update(task='digits', image_size=16, channels=1)
  c.train.update(steps=20, batch_size=16, log_every=5, stats_every=10)
  c.eval.update(every=10, batches=2, batch_size=16)
  c.checkpoint.update(every=10)
  return c.lock()
