r"""ProMoE S to XL: in every second block 12 experts of prototypes, one of images without a class, one shared.

Routing Matters in MoE: Scaling Diffusion Transformers with Explicit Routing Guidance (arXiv:2510.24711),
released configurations. Expected FID and IS after 500k steps without guidance, and at 1.5: paper.REPORTED;
B 24.44 and 60.38, 6.39 and 154.21.
Differs: ImageNet of 32 x 32 pixels stands in for latents of 256 x 256 pixels by sd-vae-ft, which are outside
of this project: 3 channels in place of 4, the same 256 tokens, and FIDs do not compare. Matrices start
N(0, 1 / fan-in), in the released code Xavier-uniform. Float32 where the code has bfloat16.

  stmoe train promoe/sizes --workdir runs/promoe_b           the data: TensorFlow Datasets' imagenet_resized
  stmoe train promoe/sizes:size=xl,method=expert_choice      any of: dit | promoe | expert_choice
  stmoe train promoe/sizes:gate=softmax,k=2                  gate = identity | sigmoid | softmax
  stmoe train promoe/sizes:smoke                             laptop, on scikit-learn's digits, about a minute
  size = s | b | l | xl
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs import dit
from stmoe.configs.promoe import blocks
from stmoe.configs.promoe import paper

VARIANTS = ('size=s', 'size=xl,method=expert_choice', 'method=dit', 'gate=softmax,k=2')
TOKENS = 256                           # of an image


def get_config(arg=''):
  routing, optim = paper.ROUTING, paper.OPTIM
  args = arguments.parse(arg, smoke=False, size='b', method='promoe', gate=routing['gate'], k=routing['k'])
  size = common.choose('size', args.size, dit.SIZES)
  c = common.config()
  c.model = dit.model(size, (), labels=dit.LABELS, image_size=32, channels=3)
  images = optim['batch_size'] // optim['devices']
  pair = blocks.put(c, args.method, size['d_model'], d_ff=paper.WIDTH[args.size],
                    experts=routing['experts'], group_size=images * TOKENS)
  c.model.layers = ((pair, size['layers'] // 2),)
  if args.method != 'dit':
    c.blocks.m.inner.router.update(gate=args.gate, k=type(c.blocks.m.inner.router.k)(args.k))
  c.data = common.noise('tfds:imagenet_resized/32x32', 32, flip=True, levels='logit_normal',
                        label_dropout=dit.DROPOUT)
  c.loss = dict(name='flow', bound=1.0)
  dit.training(c, optim['steps'], optim['batch_size'], optim['rate'], optim['average'], optim['clip'])
  c.eval.batch_size = optim['batch_size']
  return common.smoke_noise(c) if args.smoke else c.lock()
