"""The training run of a V-MoE, from an entry of `paper.SIZES`."""

from stmoe.configs import common
from stmoe.configs.vmoe import paper


def pattern(layers, every=0, last=0):
  """Returns the layer pattern with sparse blocks (m): every `every`-th block, or the `last` last odd blocks.

  >>> pattern(12, every=2), pattern(8, last=2), pattern(8)
  ((('dm', 6),), (('d', 4), ('dm', 2)), (('d', 8),))

  Raises UserError for more sparse blocks than there are odd ones.
  """
  if every:
    return (('d' * (every - 1) + 'm', layers // every),)
  dense = layers - 2 * common.whole('last', last, 0, layers // 2)
  return ((('d', dense),) if dense else ()) + ((('dm', last),) if last else ())


def tokens(image_size, patch_size):
  """Returns T: the patches of an image and the class token."""
  return (image_size // patch_size) ** 2 + 1


def training(size, task, steps, batch_size, *, labels, experts, every=0, last=0, image_size=224,
             head_bias=0.0, representation=0, capacity_factor=None, expert_dropout=0.0, **data):
  """Returns the unlocked config of `size` (an entry of paper.SIZES) on images of `task`.

  Args:
    experts:         0 leaves ViT, with dense layers only.
    capacity_factor: (train, eval), where the pair is not the paper's.
    data:            fields of section `data`.
  """
  d_model, d_ff, patch = size['d_model'], size['d_ff'], size['patch_size']
  routing = paper.ROUTING
  c = common.config()
  layers = pattern(size['layers'], every, last) if experts else pattern(size['layers'])
  c.model = dict(name='vit', vocab_size=labels, d_model=d_model, layers=layers, num_heads=size['num_heads'],
                 head_dim=d_model // size['num_heads'], image_size=image_size, patch_size=patch, channels=3,
                 pooling='token', representation=representation, head_bias=head_bias, dtype='bfloat16',
                 scan_layers=True, remat='elementwise')
  c.blocks = dict(d=dict(layer='dense', d_ff=d_ff, activation='gelu', use_bias=True))
  if experts:
    common.whole('experts', experts, routing['k'])
    c.blocks.m = dict(
        layer='moe', executor='gather',
        group_size=routing['images_per_group'] * tokens(image_size, patch),
        router=dict(name='vmoe', num_experts=experts, k=routing['k'], noise_std=routing['noise_std'],
                    capacity_factor=capacity_factor or 2 * (routing['capacity_factor'],),
                    multiple_of=routing['multiple_of'], batch_priority=False),
        experts=dict(name='mlp', d_ff=d_ff, activation='gelu', use_bias=True, identical=True, init_scale=1.0,
                     dropout_rate=expert_dropout))
    c.losses.update(importance=(paper.IMPORTANCE, 'sum'), load=(paper.LOAD, 'sum'), gshard=(0.0, 'mean'))
  c.data = common.images(task, image_size, **data)
  c.loss.sigmoid = True
  optim = paper.OPTIM
  c.optimizer = dict(name='adamw', b1=optim['b1'], b2=optim['b2'], weight_decay=optim['weight_decay'])
  c.schedule = dict(name='linear', peak=size['peak'], warmup_steps=optim['warmup_steps'],
                    end_fraction=optim['end_rate'] / size['peak'])
  c.train.update(steps=steps, batch_size=batch_size, clip=size.get('clip', 0.0), log_every=100,
                 stats_every=1000)
  c.eval.update(every=1000, batch_size=batch_size)
  c.checkpoint.update(every=1000)
  c.mesh.update(data=1, expert=-1, model=1)      # the devices must divide the experts; the batch is over all
  if not experts:
    c.mesh.update(data=-1, expert=1)
  return c


def epochs(task, number, batch_size):
  """Returns the steps of `number` epochs of a set of paper.DATA."""
  return number * paper.DATA[task]['images'] // batch_size
