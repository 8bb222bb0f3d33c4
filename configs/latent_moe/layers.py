r"""A standard sparse layer and one with experts in a quarter of the width, four times as many.

LatentMoE (arXiv:2512.20856), section 2.2: D 4096, 128 experts, k 6 against latent 1024, 512 experts, k 22.
Expected: equal parameters and FLOPs of experts, a quarter of the bytes exchanged for a choice, MMLU-Pro 52.87
against 48.30 at 73B parameters, 8B active (paper.py, from a second source).
Differs: layers, heads, width of experts, vocabulary, optimizer, schedule and data are this project's, the
source's are not at hand; all layers have attention, Nemotron's are mostly Mamba layers. So is the rate of the
bias, and the balance coefficient is V3's.

  stmoe train latent_moe/layers
  stmoe train latent_moe/layers:method=standard
  stmoe train latent_moe/layers:smoke                 laptop, about a minute
  method = latent | standard
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.latent_moe import paper

VARIANTS = ('method=standard',)
LAYERS, HEADS, WIDTH, D_FF, SHARED, VOCAB = 24, 32, 128, 2048, 4096, 131072


def block(size):
  """Returns the sparse block of an entry of paper.SIZES, its shared expert on the model's width."""
  router = dict(name='deepseek_v3', num_experts=size['experts'], k=size['k'], route_scale=paper.ROUTE_SCALE)
  experts = dict(name='mlp', d_ff=D_FF, activation=paper.ACTIVATION, init_scale=1.0)
  routed = dict(name='moe', executor='blocks', group_size=None, router=router, experts=experts)
  if size['latent']:
    routed |= dict(name='latent_moe', latent=size['latent'])
  return dict(layer='shared', d_ff=SHARED, activation=paper.ACTIVATION, gated=False, inner=routed)


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='latent')
  size = common.choose('method', args.method, paper.SIZES)
  c = common.config()
  c.model = dict(name='lm', vocab_size=VOCAB, d_model=size['d_model'], num_heads=HEADS, head_dim=WIDTH,
                 num_kv_heads=2, layers=(('m', LAYERS),), tie_embeddings=False, dtype='bfloat16',
                 scan_layers=True, remat='full')
  c.blocks = dict(m=block(size))
  c.losses = dict(balance=(1e-4, 'sum'))
  c.data = common.data('c4', 4096, vocab=f'train:{VOCAB // 1000 * 1000}')
  common.train(c, steps=250_000, batch_size=512)
  c.mesh.expert = 8
  return smoke(c, args.method) if args.smoke else c.lock()


def smoke(c, method):
  """Shrinks `c` as `common.smoke` does; the latent width stays a quarter of the model's."""
  inner = c.blocks.m.inner
  c.blocks.m.d_ff = 128
  c.model.num_kv_heads = 1
  inner.router.k = 2 if method == 'standard' else 4
  if 'latent' in inner:
    inner.latent = 16
  c.schedule.warmup_steps = 5
  return common.smoke(c)
