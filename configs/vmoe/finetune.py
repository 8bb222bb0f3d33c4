r"""A pre-trained V-MoE on ILSVRC2012 with 384 pixels: fine-tuning, 10,000 steps.

Scaling Vision with Sparse Mixture of Experts (arXiv:2106.05974), released configurations
vmoe_b16_imagenet21k_randaug_strong_ft_ilsvrc2012 and, of S/32, ..._light1_ft_ilsvrc2012, which are the same.
Positions are interpolated for the new resolution (stmoe/parts/pictures/positions.py). The head is new, and
reads the class token without a tanh layer. Expected accuracy: B/16 from vmoe/imagenet21k 85.6 on the
validation split, S/32 from vmoe/ilsvrc2012 75.9 (paper.RELEASED).
Differs: trains on all training images; evaluates the middle square, where the released code squeezes the
whole image; the head begins with bias 0, which a softmax does not see.

  stmoe finetune runs/vmoe_b16 vmoe/finetune --workdir runs/vmoe_b16_384
  stmoe finetune runs/vmoe_b16 vmoe/finetune --config.data.image_size=512     positions and groups follow
  stmoe finetune runs/digits vmoe/finetune:smoke           laptop: digits of 8 pixels, tuned with 16
  stmoe train vmoe/finetune:smoke                          the same model from scratch
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.vmoe import paper
from stmoe.configs.vmoe import recipe


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False)
  facts, labels = paper.FINETUNE, paper.DATA['imagenet2012']['labels']
  capacity = (facts['capacity_factor'],) * 2
  c = recipe.training(
      paper.SIZES['b16'], 'tfds:imagenet2012', facts['steps'], facts['batch_size'], labels=labels,
      experts=paper.ROUTING['released_experts'], every=paper.IMAGENET21K['every'],
      image_size=facts['image_size'], capacity_factor=capacity, crop=facts['crop'], flip=True)
  c.loss.sigmoid = False
  c.optimizer = dict(name='sgd', momentum=facts['momentum'])
  c.schedule = dict(name='cosine', peak=facts['peak'], warmup_steps=facts['warmup_steps'],
                    end_fraction=facts['end_rate'] / facts['peak'])
  c.train.clip = facts['clip']
  if args.smoke:
    common.smoke_images(c).unlock()
    c.data.image_size = c.model.image_size = 16
    c.blocks.m.group_size = 2 * recipe.tokens(16, c.model.patch_size)
    labels = c.model.vocab_size
  c.finetune = dict(model='start', load='body', optimizer='fresh', dropout_rate=0.0, expert_dropout_rate=0.0,
                    capacity_factor=capacity, aux=True,
                    fields=dict(vocab_size=labels, representation=0, head_bias=0.0))
  return c.lock()
