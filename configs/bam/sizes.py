r"""BAM as published: seeds of 590M and 2B parameters, three branches, mixtures of four.

BAM (arXiv:2408.08274). The phases of one model, each a run:

  stmoe train bam/sizes:phase=seed --workdir runs/seed
  stmoe finetune runs/seed bam/sizes:phase=branch --workdir runs/code --config.data.files=CODE
  stmoe upcycle runs/seed runs/code runs/law runs/math bam/sizes --workdir runs/mix --step zero
  stmoe train bam/sizes --workdir runs/mix
  stmoe train bam/sizes:smoke                         the mixture from scratch; laptop, about a minute
  size = 590m | 2b
  phase = seed | branch | mix
  method = kv | shared_kv | top2 | top1 (gates of attention) | btx (attention is averaged)

Expected, average perplexity at equal compute (590m): seed 13.91, btx 10.72, shared_kv 10.46, kv 10.00.
Expected parameters of the seeds: 590M and 2B.
Differs: give texts as data.files. A mixture's data is dealt out by length, or by data.mixture between tasks.
RMSNorm, RoPE, rows of 2048 bytes or pieces, and what paper.py has as None are this project's: the losses'
coefficients, the seed's peak of 590m, the tokens of the mixture (a tenth of the seed's).
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.bam import paper
from stmoe.configs.bam import recipe

VARIANTS = ('phase=seed', 'phase=branch', 'size=2b', 'method=shared_kv', 'method=top2', 'method=top1',
            'method=btx', 'phase=seed,size=2b')
LENGTH = 2048


def schedule(phase, size):
  """Returns (tokens, section schedule) of a phase; branches have half of the seed's peak."""
  seed, mix = paper.SEED[size], paper.MIX[size]
  peak, warmup, end = seed['peak'] or 1e-2, seed['warmup'] or 2000, seed['end'] or 0.1
  tokens, peak, warmup, end = dict(
      seed=(seed['tokens'], peak, warmup, end),
      branch=(paper.BRANCH['tokens'], paper.BRANCH['rate'] * peak, warmup, end),
      mix=(mix['tokens'] or seed['tokens'] / 10, mix['peak'], mix['warmup'], mix['end']))[phase]
  return tokens, dict(name='cosine', peak=peak, warmup_steps=warmup, end_fraction=end)


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, size='590m', phase='mix', method='kv')
  size = common.choose('size', args.size, paper.SIZES)
  c = common.config()
  c.model = dict(name='lm', vocab_size=paper.VOCAB, d_model=size['d_model'], num_heads=size['num_heads'],
                 head_dim=size['d_model'] // size['num_heads'], num_kv_heads=size['num_kv_heads'],
                 layers=(), tie_embeddings=size['tied'], dtype='bfloat16', scan_layers=True, remat='full')
  recipe.put(c, args.phase, args.method, size['d_ff'], size['layers'])
  tokens, c.schedule = schedule(args.phase, args.size)
  batch = round(paper.SEED[args.size]['batch'] / LENGTH / 8) * 8
  c.data = common.data('text', LENGTH, vocab=f'train:{paper.VOCAB}')
  c.optimizer = dict(name='adamw', b1=0.9, b2=0.95, eps=1e-8, weight_decay=paper.WEIGHT_DECAY)
  c.train.update(steps=round(tokens / (batch * LENGTH)), batch_size=batch, clip=1.0, log_every=100,
                 stats_every=1000)
  c.eval.update(every=2000, batches=64, batch_size=batch)
  c.checkpoint.update(every=2000)
  c.mesh.expert = 1 if args.phase != 'mix' else paper.EXPERTS
  if args.smoke:
    c.model.num_kv_heads = 2
    c.schedule.warmup_steps = 5
    return common.smoke(c)
  return c.lock()
