r"""AdvMoE on CIFAR-10: a ResNet-18 whose convolutions have 2 experts of half the width, for 100 epochs.

Robust Mixture-of-Expert Training for Convolutional Neural Networks (arXiv:2308.10110), sizes and rates of the
released code. Experts and router train in turns, each in every second step.

  stmoe train adv_moe/cifar10 --workdir runs/adv_moe           the data: TensorFlow Datasets' cifar10
  stmoe train adv_moe/cifar10:method=dense,ratio=1.0           the dense network of the original width
  stmoe train adv_moe/cifar10:smoke                            laptop, on scikit-learn's digits, minutes
  method = advmoe | bilevel | plain | dense | standard (recipe.py); size = resnet18 | resnet34 | resnet50

Expected: robust accuracy 1 to 4 points above the dense network of the original width at half its inference
cost (paper.REPORTED, the abstract).
Differs: twice the steps, since a step here trains the experts or the router, where a released step trains
both, on one batch. Weight decay is decoupled and of matrices alone. The released evaluation has 10 steps.
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.adv_moe import paper
from stmoe.configs.adv_moe import recipe

VARIANTS = ('method=bilevel', 'method=plain', 'method=dense', 'method=standard', 'size=resnet50', 'experts=4')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='advmoe', size='resnet18', experts=paper.EXPERTS,
                         ratio=paper.RATIO)
  size, optim, data = common.choose('size', args.size, paper.SIZES), paper.OPTIM, paper.CIFAR
  c = common.config()
  c.model = dict(name='resnet', vocab_size=data['labels'], d_model=paper.STEM, image_size=data['image_size'],
                 channels=3, router_width=paper.ROUTER['width'], router_depth=paper.ROUTER['depth'],
                 executor='gather', **size)
  c.blocks = {}
  recipe.put(c, args.method, args.experts, args.ratio,
             dict(paper.ATTACK, **paper.EVAL, beta=paper.BETA, alpha=paper.ALPHA))
  c.data = common.images('tfds:cifar10', data['image_size'], crop=0.7, flip=True, mean=0.0, std=1.0)
  c.losses = {}
  c.optimizer = dict(name='sgd', momentum=optim['momentum'], weight_decay=optim['weight_decay'])
  turns = 2 if args.method in ('advmoe', 'bilevel') else 1
  steps = turns * optim['epochs'] * data['images'] // optim['batch_size']
  c.schedule = dict(name='cosine', peak=optim['peak'])
  c.train.update(steps=steps, batch_size=optim['batch_size'], log_every=100, stats_every=1000)
  c.eval.update(every=2000, batch_size=optim['batch_size'])
  c.checkpoint.update(every=2000, best='eval/robust_accuracy')
  if not args.smoke:
    return c.lock()
  c.model.update(d_model=4, widths=(8, 16), depths=(1, 1), image_size=8, channels=1, router_width=4,
                 router_depth=1)
  c.data.update(task='digits', image_size=8, channels=1)
  c.train.update(steps=20, batch_size=16, log_every=5, stats_every=10)
  c.eval.update(every=10, batches=2, batch_size=16)
  c.checkpoint.update(every=10)
  return c.lock()
