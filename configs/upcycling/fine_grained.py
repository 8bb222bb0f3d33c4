r"""A language model upcycled into fine-grained experts: each copy is cut into G shards (virtual groups).

Upcycling Large Language Models into Mixture of Experts (arXiv:2410.07524). There are N = G R experts of 1/G
of the dense width. G experts per token cost what the dense layer costs.

  stmoe train upcycling/fine_grained:dense --workdir runs/dense
  stmoe upcycle runs/dense upcycling/fine_grained --workdir runs/sparse --granularity 8 --step zero
  stmoe train upcycling/fine_grained --workdir runs/sparse
  stmoe train upcycling/fine_grained:smoke            the sparse model from scratch; laptop, about a minute

Experts and matrices are in the order of the paper's code and scaled by A^(1/3), A = R G^2 / k. The gates
are a softmax over all N experts and do not sum to 1. Expected: a small gap at step 0, then a lower loss than
dense continuation. The paper's figures (Nemotron-4 15B, MMLU 65.3 to 67.6) are of other sizes.
Differs: C4/en instead of private data; a 0.4B SwiGLU model of this project's sizes instead of Nemotron's with
squared ReLU (for SwiGLU the scaling is approximate); dropless; rates, batch and balance loss are ours.
With `smoke` granularity is 8 too: 8 experts, one copy.
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs import t5

VARIANTS = ('dense', 'granularity=4,copies=4')
WIDTHS = dict(d_model=1024, num_heads=16, head_dim=64)
LAYERS, D_FF, LENGTH, VOCAB_SIZE = 24, 2816, 2048, 32_000
BALANCE = 1e-2
SMOKE_D_FF = 128


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, dense=False, granularity=8, copies=8)
  common.whole('granularity', args.granularity, 1, SMOKE_D_FF if args.smoke else D_FF)
  common.whole('copies', args.copies)
  c = common.config()
  c.model = dict(name='lm', vocab_size=VOCAB_SIZE, layers=(('d' if args.dense else 'm', LAYERS),),
                 tie_embeddings=False, dtype='bfloat16', scan_layers=True, remat='full', **WIDTHS)
  c.data = common.data('c4', length=LENGTH, vocab=f'train:{VOCAB_SIZE}')
  router = dict(name='st_moe', num_experts=args.granularity * args.copies, k=args.granularity,
                normalize_gates=False, second_policy='all', balance_choices='any',
                capacity_factor=(None, None))
  if args.dense:
    c.blocks = dict(d=dict(layer='dense', d_ff=D_FF, activation='silu', gated=True))
  else:
    c.blocks = dict(m=common.moe(router, D_FF // args.granularity, experts='glu', activation='silu'))
    c.losses.balance = (BALANCE, 'mean')
    c.mesh.update(data=1, expert=-1)
  c.optimizer = common.adamw()
  c.schedule = dict(name='cosine', peak=3e-4, warmup_steps=1000, end_fraction=0.1)
  c.train.update(steps=100_000 if args.dense else 50_000, batch_size=t5.TOKENS_PER_BATCH // LENGTH, clip=1.0)
  c.eval.update(batches=100, batch_size=t5.TOKENS_PER_BATCH // LENGTH)
  if args.smoke:
    common.smoke(c).unlock()
    if not args.dense:
      c.blocks.m.experts.d_ff = SMOKE_D_FF // args.granularity
  return c.lock()
