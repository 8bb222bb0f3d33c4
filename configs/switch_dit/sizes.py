r"""Switch-DiT S to XL, three experts of the noise level in every block, two of them used.

Switch Diffusion Transformer: Synergizing Denoising Tasks with Sparse Mixture-of-Experts (arXiv:2403.09176),
released configurations. Expected FID of 50k images at guidance 1.5: paper.REPORTED; S 33.99 (DiT 44.28),
XL 8.76 (DiT 9.40).
Differs: ImageNet of 32 x 32 pixels stands in for latents of 256 x 256 pixels by sd-vae-ft, which are outside
of this project: 3 channels in place of 4, the same 256 tokens, and FIDs do not compare. Matrices start
N(0, 1 / fan-in), in the released code Xavier-uniform. Float32 where the code has mixed precision.

  stmoe train switch_dit/sizes --workdir runs/switch_dit_s   the data: TensorFlow Datasets' imagenet_resized
  stmoe train switch_dit/sizes:size=xl,method=dit            any of: dit | dtr | switch_dit
  stmoe train switch_dit/sizes:schedule=cosine,weight=min_snr
  stmoe train switch_dit/sizes:smoke                         laptop, on scikit-learn's digits, about a minute
  size = s | b | l | xl
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs import dit
from stmoe.configs.switch_dit import blocks
from stmoe.configs.switch_dit import paper

VARIANTS = ('size=xl', 'method=dit', 'method=dtr', 'schedule=cosine,weight=min_snr')


def get_config(arg=''):
  process, optim = paper.PROCESS, paper.OPTIM
  args = arguments.parse(arg, smoke=False, size='s', method='switch_dit', schedule=process['schedule'],
                         weight=process['weight'])
  size = common.choose('size', args.size, dit.SIZES)
  c = common.config()
  c.model = dit.model(size, (('m', size['layers']),), labels=dit.LABELS, image_size=32, channels=3)
  blocks.put(c, args.method, size['d_model'])
  c.data = common.noise('tfds:imagenet_resized/32x32', 32, flip=optim['flip'], label_dropout=dit.DROPOUT)
  c.loss = dict(name='ddpm', schedule=args.schedule, steps=process['steps'], weight=args.weight, bound=1.0)
  dit.training(c, optim['steps'], optim['batch_size'], optim['rate'], optim['average'], optim['clip'])
  return common.smoke_noise(c) if args.smoke else c.lock()
