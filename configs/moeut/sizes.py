r"""MoEUT in the profiles of its code: a few sparse layers, repeated, with sparse attention.

MoEUT (arXiv:2405.16039), paper.py. G distinct layers follow each other a b a b: a Universal Transformer whose
layers have many experts. Its source here prints no results; method=unshared is the model that one expects to
beat it, with L / G times the parameters and equal compute.
Differs: C4/en; optimizer, rate, batch, length and steps are those of LibMoE's sweeps.
The norm before the head is RMSNorm, the code has LayerNorm. Rotary positions turn pairs, so an even part of a
head. Initial values of attention are this project's. No expert is left out in training (expert dropout).

  stmoe train moeut/sizes
  stmoe train moeut/sizes:size=244m,order=aabb
  stmoe train moeut/sizes:method=unshared            as many layers, each with arrays of its own
  stmoe train moeut/sizes:smoke                      laptop, about a minute
  method = moeut | unshared | prenorm (norms before all of a layer, not before router and softmax alone)
  size = 44m | 126m | 244m | 318m | 727m | 1b; order = abab | aabb
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.libmoe import paper as libmoe
from stmoe.configs.moeut import paper

VARIANTS = ('order=aabb', 'method=unshared', 'method=prenorm', 'size=126m', 'size=244m', 'size=318m',
            'size=727m', 'size=1b')
METHODS = dict(moeut=dict(layer='moeut', attention='moeut', tied=True),
               unshared=dict(layer='moeut', attention='moeut', tied=False),
               prenorm=dict(layer='moe', attention='switch_head', tied=True))
# A distinct layer follows after all others, or after all of its own passes.
ORDERS = dict(abab=lambda letters, repeats: ((letters, repeats),),
              aabb=lambda letters, repeats: tuple((letter, repeats) for letter in letters))


def turned(size):
  """Returns how much of a head's width rotary positions turn."""
  return int(paper.TURNED * size['width']) // 2 * 2


def block(size, method):
  """Returns the block of a layer: sigma-MoE and SwitchHead, as `method`, a row of METHODS, has them."""
  scale = 2.0 / size['layers']     # c^2, c = sqrt(2 / layers)
  router = dict(name='sigma_moe', num_experts=size['experts'], k=size['k'], init_scale=scale)
  attention = dict(name=method['attention'], nope_dim=size['width'] - turned(size),
                   router=dict(name='sigma_moe', num_experts=size['attention_experts'], k=paper.ATTENTION_K))
  layer = common.moe(router, paper.D_FF, out_scale=scale / size['experts'])
  layer['experts'].update(init_scale=scale)
  return dict(layer, layer=method['layer'], attention=attention, tied=method['tied'])


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='moeut', size='44m', order='abab')
  size = common.choose('size', args.size, paper.SIZES)
  method = common.choose('method', args.method, METHODS)
  letters = 'abcd'[:size['groups']]
  distinct = size['groups'] if method['tied'] else size['layers']
  large, optim = args.size in ('727m', '1b'), libmoe.OPTIM
  c = common.config()
  pattern = common.choose('order', args.order, ORDERS)(letters, size['layers'] // len(letters))
  c.model = dict(name='lm', vocab_size=paper.VOCAB, d_model=size['d_model'], num_heads=size['heads'],
                 head_dim=turned(size), layers=pattern, tie_embeddings=False, dtype='bfloat16',
                 scan_layers=True, remat='elementwise')
  c.blocks = {letter: block(size, method) for letter in letters}
  # The mean over layers, and over an attention's two selections, as a sum.
  c.losses = dict(entropy=(paper.ENTROPY['ffn'] * distinct, 'mean'),
                  attention_entropy=(paper.ENTROPY['attention'] * 2 * distinct, 'mean'))
  c.data = common.data('c4', length=libmoe.SIZE['length'], vocab=f'train:{paper.VOCAB}')
  b1, b2 = optim['betas']
  c.optimizer = dict(name='adamw', b1=b1, b2=b2, eps=1e-8, weight_decay=optim['weight_decay'])
  c.schedule = dict(name='cosine', peak=optim['peak'], end_fraction=optim['end_fraction'],
                    warmup_steps=paper.LARGE_WARMUP if large else optim['warmup_steps'])
  c.train.update(steps=libmoe.SIZE['steps'], batch_size=libmoe.SIZE['batch'], log_every=100, stats_every=1000,
                 clip=paper.LARGE_CLIP if large else optim['clip'])
  c.eval.update(every=2000, batches=64, batch_size=libmoe.SIZE['batch'])
  c.checkpoint.update(every=10_000)
  return smoke(c) if args.smoke else c.lock()


def smoke(c):
  """Shrinks `c` as `common.smoke` does, but for two passes and two choices of the experts left; locked."""
  for layer in c.blocks.values():
    layer.router.k = 2
    layer.attention.router.num_experts = 4
  c = common.smoke(c)
  with c.unlocked():
    c.model.layers = tuple((letters, 2) for letters, _ in c.model.layers)
  return c
