r"""ReLU routing held to one expert a token on average by an adaptive L1 loss, and its top-1 baseline.

ReMoE (arXiv:2412.14711). Expected: the mean number of experts comes to k within 10 %, in stages, from most of
them in the first hundred steps or so; a loss below that of top-k routing with the same mean FLOPs. FLOPs are
counted with k.
Differs: the sizes of the paper are not at hand; width, depth, data, optimizer and schedule are ours.

  stmoe train remoe/small
  stmoe train remoe/small:k=2,experts=16
  stmoe train remoe/small:method=top_k                the baseline: dropless, a balance loss
  stmoe train remoe/small:smoke                       laptop, about a minute
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.remoe import paper

VARIANTS = ('k=2,experts=16', 'method=top_k')
D_MODEL, LAYERS, D_FF, VOCAB_SIZE, LENGTH = 768, 12, 2048, 32000, 1024


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='remoe', k=1, experts=8)
  common.whole('experts', args.experts, common.whole('k', args.k))
  relu = dict(name='remoe', initial=paper.INITIAL, multiplier=paper.MULTIPLIER)
  top_k = dict(name='st_moe', second_policy='all', capacity_factor=(None, None))
  router = common.choose('method', args.method, dict(remoe=relu, top_k=top_k))
  c = common.config()
  c.model = dict(name='lm', vocab_size=VOCAB_SIZE, d_model=D_MODEL, num_heads=12, head_dim=64,
                 tie_embeddings=False, dtype='bfloat16', scan_layers=True, remat='full',
                 layers=(('m', LAYERS),))
  c.blocks = dict(m=common.moe(dict(router, num_experts=args.experts, k=args.k), D_FF, experts='glu',
                               activation='silu'))
  # lambda is in the loss; layers add up.
  c.losses = dict(sparsity=(1.0, 'sum')) if args.method == 'remoe' else common.BALANCE
  c.data = common.data('c4', LENGTH, vocab=f'train:{VOCAB_SIZE}')
  common.train(c, steps=60_000, batch_size=512, peak=5e-4, warmup_steps=5 if args.smoke else 500)
  c.mesh.expert = 8
  return common.smoke(c) if args.smoke else c.lock()
