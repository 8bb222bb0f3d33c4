r"""Experts of the first sparse layers by token id, and the rest by sqrt-softplus scores with a bias.

DeepSeek-V4's routing (2026) on the validation model of DeepSeekMoE (arXiv:2401.06066). Expected (no report is
at hand): in hashed layers the load is fixed by the table, and no router collapses; the loss is that of layers
that are all learned. hashed=0 is that baseline; method=v3 is DeepSeek-V3's router in all layers.
Differs: widths, optimizer and data of V4 are not at hand; the bias has V3's rate (arXiv:2412.19437); tables
give experts in turn, as Megatron-LM's do, unless one of `stmoe tables` is given.

  stmoe train deepseek_v4/hash_layers --workdir runs/v4
  stmoe train deepseek_v4/hash_layers:method=v3,hashed=0
  stmoe train deepseek_v4/hash_layers --config.blocks.h.inner.router.table=balanced.npz
  stmoe train deepseek_v4/hash_layers:smoke           laptop, about a minute
  method = v4 | v3; hashed: number of the first layers; limit = True | False: of SwiGLU
"""

from stmoe import errors
from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.deepseek_moe import paper as deepseek
from stmoe.configs.deepseek_moe import recipe
from stmoe.configs.deepseek_v4 import paper

SIZE, SCALE = deepseek.SIZES['validation'], paper.SIZES['flash']['scale']
METHODS = dict(v4=dict(name='deepseek_v4', k=SIZE['k'], route_scale=SCALE, rate=deepseek.BIAS_RATE),
               v3=dict(name='deepseek_v3', k=SIZE['k'], route_scale=SCALE, rate=deepseek.BIAS_RATE))
VARIANTS = ('hashed=0', 'method=v3,hashed=0', 'limit=False')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='v4', hashed=paper.HASHED, limit=True)
  router = common.choose('method', args.method, METHODS)
  most = SIZE['layers'] - 1 if args.method == 'v4' else 0
  if not 0 <= args.hashed <= most:
    raise errors.UserError(f'hashed={args.hashed}: at most {most} of {SIZE["layers"]} layers are with '
                           f'method={args.method}; nearest: {min(max(args.hashed, 0), most)}')
  c = recipe.pretraining(SIZE, deepseek.RUNS['validation'], router, dict(
      balance=(deepseek.LOSSES['v3'][0], 'sum')))
  if args.limit:
    c.blocks.m.limit = c.blocks.m.inner.experts.limit = paper.LIMIT
  if args.hashed:
    c.blocks.h = c.blocks.m.to_dict()
    c.blocks.h.inner.router.update(hashed=True, vocab_size=c.model.get_ref('vocab_size'))
    c.model.layers = (('h', args.hashed), ('m', SIZE['layers'] - args.hashed))
  return recipe.smoke(c) if args.smoke else c.lock()
