r"""Upcycling on a laptop: a dense language model, then half as many steps again, dense or sparse.

Sparse Upcycling (arXiv:2212.05055) on the Python standard library, a few minutes on two cores:

  stmoe train upcycling/stdlib:method=dense --workdir runs/dense
  stmoe upcycle runs/dense upcycling/stdlib:method=grains --workdir runs/grains --granularity 2
  stmoe upcycle runs/dense upcycling/stdlib:method=top2 --workdir runs/top2
  stmoe train upcycling/stdlib:method=grains --workdir runs/grains
  stmoe train upcycling/stdlib:method=top2 --workdir runs/top2
  stmoe train upcycling/stdlib:method=dense --workdir runs/dense --config.train.steps=360
  stmoe train upcycling/stdlib:method=grains --workdir runs/scratch --config.train.steps=120
  stmoe train upcycling/stdlib:smoke                  the sparse model from scratch, half a minute

  method = top2    8 experts of the dense width, two per token: dearer than dense; gap 0 at step 0
           grains  16 experts of half the width, two per token (virtual groups): as dear as dense; gap 0
           top1    8 experts of the dense width, the gate as it is: as dear as dense; a gap at step 0
           dense

Expected at +50 % of the steps (by the paper's claims): upcycled before dense before sparse from scratch.
From scratch, a sparse model needs about as much training as the dense model had to catch up.
Differs: nothing of the paper's is this small; RMSNorm decoders with AdamW and token choice. Measured:
experiments/upcycling.
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.lm import models

VARIANTS = ('method=dense', 'method=grains', 'method=top1')
D_FF, EXPERTS = 256, 8
DENSE_STEPS = 240
TOP2 = dict(name='st_moe', k=2, second_policy='all', capacity_factor=(None, None))
# method -> (router, experts, their width); None = dense.
METHODS = dict(
    top2=(TOP2, EXPERTS, D_FF),
    grains=(TOP2, 2 * EXPERTS, D_FF // 2),
    top1=(dict(name='switch', capacity_factor=(2.0, 2.0)), EXPERTS, D_FF),
    dense=None,
)


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='top2')
  sparse = common.choose('method', args.method, METHODS)

  c = common.config()
  c.model = models.lm((('dm' if sparse else 'dd', 2),), 4, vocab_size=384, d_model=64)
  c.data = common.data('stdlib', length=128)
  c.blocks = dict(d=dict(layer='dense', d_ff=D_FF))
  if sparse:
    router, experts, width = sparse
    c.blocks.m = common.moe(dict(router, num_experts=experts), width, group_size=2 * 128)
    c.losses = common.BALANCE
  c.optimizer = common.adamw()
  # 2e-3 for 60 steps, then falling with the root of the step, whenever it will stop.
  c.schedule = dict(name='rsqrt', base=2e-3 * 60 ** 0.5, hold_steps=60)
  c.train.update(steps=DENSE_STEPS * 3 // 2 if sparse else DENSE_STEPS, batch_size=16, clip=1.0, log_every=10,
                 stats_every=40)
  c.eval.update(every=60, batches=50, batch_size=16)
  c.checkpoint.update(every=60)
  if args.smoke:
    c.train.update(steps=15 if sparse else 10, log_every=5, stats_every=5)
    c.eval.update(every=5, batches=4)
    c.checkpoint.update(every=5)
  return c.lock()
