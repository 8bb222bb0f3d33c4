r"""BAM on a laptop: a small language model, branches of it on other texts, and their mixture.

BAM (arXiv:2408.08274), models of bytes of 2 layers. With books, C4's text and the Python standard library:

  stmoe train bam/domains:phase=seed --workdir runs/seed --config.data.files=BOOKS
  stmoe finetune runs/seed bam/domains:phase=branch --workdir runs/c4 --config.data.files=C4
  stmoe finetune runs/seed bam/domains:phase=branch --workdir runs/code --config.data.task=stdlib
  stmoe upcycle runs/seed runs/c4 runs/code bam/domains --workdir runs/mix --step zero \
      --config.data.files=BOOKS,C4
  stmoe train bam/domains --workdir runs/mix --config.data.files=BOOKS,C4
  stmoe train bam/domains:smoke                        the mixture from scratch; laptop, half a minute
  phase = seed | branch | mix
  method = kv | shared_kv | top2 | top1 (gates of attention) | btx (attention is averaged)

Expected (by the paper's 590M models): loss of kv below shared_kv below btx below the seed; soft gates below
top1. At this size the differences may drown in noise.
Differs: nothing of the paper's is this small. A mixture of three domains has three experts, and its data is
data.mixture of tasks text and stdlib, weighed by their domains. RMSNorm; losses' coefficients of ST-MoE's.
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.bam import paper
from stmoe.configs.bam import recipe
from stmoe.configs.lm import models

VARIANTS = ('phase=seed', 'phase=branch', 'method=shared_kv', 'method=top2', 'method=top1', 'method=btx')
D_FF, LAYERS, STEPS = 256, 2, 300
EXPERTS = 3
PEAK = 3e-3


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, phase='mix', method='kv')
  c = common.config()
  c.model = models.lm((), LAYERS, vocab_size=384, d_model=128)
  recipe.put(c, args.phase, args.method, D_FF, LAYERS, EXPERTS)
  c.data = common.data('text', 128)
  if args.phase == 'mix':
    c.data.mixture = (('text', 2.0), ('stdlib', 1.0))
  c.optimizer = dict(name='adamw', b1=0.9, b2=0.95, eps=1e-8, weight_decay=paper.WEIGHT_DECAY)
  peak = PEAK if args.phase == 'seed' else paper.BRANCH['rate'] * PEAK
  c.schedule = dict(name='cosine', peak=peak, warmup_steps=30, end_fraction=0.1)
  c.train.update(steps=STEPS, batch_size=16, clip=1.0, log_every=10, stats_every=50)
  c.eval.update(every=100, batches=50, batch_size=16)
  c.checkpoint.update(every=100)
  if args.smoke:
    c.data.mixture = ()
    c.schedule.warmup_steps = 5
    return common.smoke(c)
  return c.lock()
