r"""AdvMoE, plain adversarial training and standard training on handwritten digits, in 3 minutes on two cores.

The file trains no experiment of the paper (arXiv:2308.10110), which prints no such result. 1,797 digits of
8 x 8 pixels from scikit-learn; three stages of 16, 32 and 32 channels, 2 experts of half the width. Attacks
are within 0.15 of every pixel, evaluation takes 20 steps.

  stmoe train adv_moe/digits --workdir runs/adv_moe
  stmoe train adv_moe/digits:method=standard               no attacks in training
  stmoe train adv_moe/digits:method=dense                  a dense network of the experts' width
  stmoe eval runs/adv_moe --config.loss.attack=model       attacks on the model, not on its router
  stmoe train adv_moe/digits:smoke                         half a minute
  method = advmoe | bilevel | plain | dense | standard (recipe.py)

Expected: standard training is robust to few attacks, AdvMoE to tens of points more of them at a few points of
standard accuracy.
Measured, one seed, accuracy and robust accuracy on the held-out fifth: standard 98.6 and 5.0 %, dense 97.2
and 70.2 %, advmoe 98.1 and 75.5 % (after its 600 steps, 300 of them of the experts). The attack on a mixture
is joint, and changes the expert of 21 % of the images. All 600 steps of advmoe took 135 s on two cores.
Differs: sizes, radius and schedule are this project's choice.
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.adv_moe import recipe

VARIANTS = ('method=bilevel', 'method=plain', 'method=dense', 'method=standard')
ATTACK = dict(epsilon=0.15, step_size=0.1, steps=2, noise=0.01, eval_step_size=0.02, eval_steps=20, beta=6.0,
              alpha=6.0)


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='advmoe', experts=2, ratio=0.5)
  c = common.config()
  c.model = dict(name='resnet', vocab_size=10, d_model=16, widths=(16, 32, 32), depths=(1, 1, 1),
                 image_size=8, channels=1, router_width=8, router_depth=1, executor='gather')
  c.blocks = {}
  recipe.put(c, args.method, args.experts, args.ratio, ATTACK)
  c.data = common.images('digits', 8, channels=1, mean=0.0, std=1.0)
  c.losses = {}
  c.optimizer = dict(name='sgd', momentum=0.9, weight_decay=5e-4)
  c.schedule = dict(name='cosine', peak=0.05, warmup_steps=20)
  c.train.update(steps=600 if args.method in ('advmoe', 'bilevel') else 300, batch_size=64, clip=1.0,
                 log_every=50, stats_every=100)
  c.eval.update(every=300, batch_size=128)
  c.checkpoint.update(every=300, best='eval/robust_accuracy')
  if args.smoke:
    c.train.update(steps=20, log_every=5, stats_every=10)
    c.eval.update(every=10, batches=1)
    c.checkpoint.update(every=10)
  return c.lock()
