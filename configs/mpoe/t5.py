r"""T5 with experts as matrix product operators that share their central tensors; top-1.

MPOE (arXiv:2203.01104). Expected: better than Switch with as many experts, at a fraction of its parameters
(27.2 times fewer in all, abstract); masking or freezing the central tensors better than plain sharing.
Differs: pre-training on C4 where the paper fine-tunes T5 on GLUE (paper.GLUE); experts in all layers; the
probability of the mask is not at hand, 0 unless it is given; no balance loss, as released.

  stmoe train mpoe/t5
  stmoe train mpoe/t5:model=dense --workdir runs/dense          and experts that begin as its layers:
  stmoe upcycle runs/dense mpoe/t5 --workdir runs/mpoe --step zero
  stmoe train mpoe/t5:mask=0.5                        half of all gradients of the central tensors masked
  stmoe train mpoe/t5:freeze                          the released form: central tensors do not train
  stmoe train mpoe/t5:model=switch                    the same experts, nothing shared
  stmoe train mpoe/t5:smoke                           laptop, about a minute
  size = base | large; model = mpoe | switch | dense; experts = 8; scale_prob: outputs times the probability;
  drop: capacity 1, random drops, dropped tokens pass through; bond: most of a bond, 0 = any
"""

from stmoe import errors
from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs import t5
from stmoe.configs.mpoe import recipe

# T5 1.0 (arXiv:1910.10683): ReLU, tied embeddings.
SIZES = dict(base=dict(d_model=768, d_ff=3072, num_heads=12, head_dim=64, layers=12),
             large=dict(d_model=1024, d_ff=4096, num_heads=16, head_dim=64, layers=24))
MODELS = dict(mpoe='mpo', switch='mlp', dense=None)
VARIANTS = ('size=large,experts=3', 'experts=16', 'model=switch', 'model=dense', 'scale_prob', 'drop',
            'mask=0.5', 'freeze', 'bond=64')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, size='base', model='mpoe', experts=8, scale_prob=False, drop=False,
                         mask=0.0, freeze=False, bond=0)
  size = common.choose('size', args.size, SIZES)
  bank = dict(name=common.choose('model', args.model, MODELS), d_ff=size['d_ff'], activation='relu',
              init_scale=1.0)
  c = t5.pretraining(steps=100_000)
  if args.model == 'dense':
    c.model = t5.model(size, *[(('d', size['layers']),)] * 2, tied=True)
    c.blocks = dict(d=t5.dense(size['d_ff'], gated=False))
    return common.smoke(c) if args.smoke else c.lock()
  if args.bond:
    if args.model != 'mpoe':
      raise errors.UserError(f'bond={args.bond}: experts of model={args.model} are no matrix product '
                             'operators; nearest: bond=0')
    bank['bond'] = args.bond
  router = dict(name='mpoe', num_experts=args.experts, scale_prob=args.scale_prob, pass_dropped=args.drop,
                capacity_factor=(1.0, 1.0) if args.drop else (None, None))
  c.model = t5.model(size, (('m', size['layers']),), (('n', size['layers']),), tied=True)
  c.blocks = dict(zip('mn', t5.sparse(router, bank, sequences=8)))
  if args.drop:
    for block in c.blocks.values():
      block.virtual = ('copy',)
  recipe.central(c, args.mask, args.freeze)
  return common.smoke(c) if args.smoke else c.lock()
