r"""A V-MoE and its dense twin on 1,797 real handwritten digits, in minutes on two cores.

The file trains no experiment of the paper (arXiv:2106.05974), which prints no such result. Use the file to
see routing of image patches, and to try a router on images. Images of 8 x 8 pixels from scikit-learn, patches
of 2 x 2.

  stmoe train vmoe/digits --workdir runs/digits
  stmoe train vmoe/digits:method=soft_moe                  any of: vit | vmoe | bpr | soft_moe | expert_choice
  stmoe train vmoe/digits:smoke                            half a minute
  stmoe eval runs/digits --config.blocks.m.router.batch_priority=True \
    --sweep 'blocks.m.router.capacity_factor=(1.05,0.1);(1.05,0.3);(1.05,1.0)'     priority at inference
  stmoe train vmoe/digits --config.data.task=npz --config.data.files=FILE.npz    28 x 28 images of one's own:
    --config.data.image_size=28 --config.model.image_size=28 --config.model.patch_size=4
    --config.blocks.m.group_size=400

Expected (this project's, no published figure): 95 % of the held-out fifth. After 600 of the 1,000 steps vmoe
reached 95.0 and soft_moe 94.7; chance is 10 %.
Differs: sizes, augmentation and schedule are this project's choice.
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.vmoe import paper

VARIANTS = ('method=vit', 'method=soft_moe', 'method=bpr', 'method=expert_choice')
TOKENS = 17                        # 16 patches and the class token

# method -> (router, tokens routed together, executor); the experts of a token add up to the dense width.
METHODS = dict(
    vit=None,
    vmoe=(dict(name='vmoe', k=2, capacity_factor=(1.05, 2.0), batch_priority=False), 8 * TOKENS, 'blocks'),
    bpr=(dict(name='vmoe', k=2, capacity_factor=(0.5, 0.5), batch_priority=True), 8 * TOKENS, 'blocks'),
    soft_moe=(dict(name='soft_moe', slots=2), TOKENS, 'einsum'),
    expert_choice=(dict(name='expert_choice', capacity_factor=(2.0, 2.0)), 8 * TOKENS, 'blocks'),
)


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='vmoe', experts=8)
  sparse = common.choose('method', args.method, METHODS)
  c = common.config()
  c.model = dict(name='vit', vocab_size=10, d_model=64, layers=(('dm', 2),) if sparse else (('d', 4),),
                 num_heads=4, head_dim=16, image_size=8, patch_size=2, channels=1, pooling='token',
                 representation=0)
  c.blocks = dict(d=dict(layer='dense', d_ff=256, activation='gelu', use_bias=True))
  if sparse:
    router, group_size, executor = sparse
    common.whole('experts', args.experts, router.get('k', 1))
    # Slots of soft_moe are about as many as tokens: experts of the dense width cost what it costs.
    d_ff = 256 if args.method == 'soft_moe' else 128
    c.blocks.m = dict(layer='moe', executor=executor, group_size=group_size,
                      router=dict(router, num_experts=args.experts),
                      experts=dict(name='mlp', d_ff=d_ff, activation='gelu', use_bias=True, init_scale=1.0))
    if router['name'] == 'vmoe':
      c.losses.update(importance=(paper.IMPORTANCE, 'sum'), load=(paper.LOAD, 'sum'), gshard=(0.0, 'mean'))
  c.data = common.images('digits', 8, channels=1, crop=0.6)
  c.optimizer = dict(name='adamw', b1=0.9, b2=0.999, weight_decay=0.1)
  c.schedule = dict(name='cosine', peak=2e-3, warmup_steps=50)
  c.train.update(steps=1000, batch_size=64, clip=1.0, log_every=50, stats_every=250)
  c.eval.update(every=250, batch_size=128)
  c.checkpoint.update(every=250)
  if args.smoke:
    c.train.update(steps=60, log_every=10, stats_every=30)
    c.eval.update(every=30)
    c.checkpoint.update(every=30)
  return c.lock()
