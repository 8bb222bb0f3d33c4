"""A pre-training run of fine-grained and shared experts, from an entry of `paper.SIZES`."""

from stmoe.configs import common
from stmoe.configs.deepseek_moe import paper


def pretraining(size, run, router, losses, executor='blocks'):
  """Returns the unlocked config of a language model of `size` under V1's optimizer and schedule.

  `blocks` is the executor without drops; a router that has a capacity may take `gather`.
  Differs: C4/en instead of the papers' own corpora. Initial variances are 0.006^2 where a matrix has D
    rows, D / F of that where it has F rows. Embedding and router have this project's initial variances.

  Args:
    size:   entry of paper.SIZES: d_ff is the width of an expert; routed = 0: a dense model of that width.
    run:    entry of paper.RUNS.
    router: router and its fields; num_experts and k are the size's.
    losses: router losses.
  """
  o, scale = paper.OPTIM, paper.INIT_STD ** 2 * size['d_model']
  leading, width = size['dense']
  letter = 'm' if size['routed'] else 'd'
  glu = lambda d_ff: dict(layer='dense', d_ff=d_ff, activation='silu', gated=True, init_scale=scale)

  c = common.config()
  c.model = dict(name='lm', vocab_size=size['vocab_size'], d_model=size['d_model'],
                 num_heads=size['num_heads'], head_dim=size['head_dim'], tie_embeddings=False,
                 init_scale=scale, dtype='bfloat16', scan_layers=True, remat='full',
                 layers=((('d', leading),) if leading else ()) + ((letter, size['layers'] - leading),))
  c.blocks = dict(d=glu(width)) if leading else {}
  if size['routed']:
    experts = dict(name='glu', d_ff=size['d_ff'], activation='silu', init_scale=scale)
    routed = dict(executor=executor, group_size=None, experts=experts,
                  router=dict(dict(num_experts=size['routed']), **router))
    c.blocks.m = dict(layer='moe', **routed) if not size['shared'] else dict(
        glu(size['d_ff']), layer='shared', num_shared=size['shared'], inner=dict(name='moe', **routed))
  else:
    c.blocks.d = glu(size['d_ff'])
  c.losses = losses
  # The vocabulary is trained on the data: the papers' own is not on every machine.
  c.data = common.data('c4', run['length'], vocab=f'train:{size["vocab_size"] // 1000 * 1000}')
  c.optimizer = dict(name='adamw', b1=o['b1'], b2=o['b2'], eps=1e-8, weight_decay=o['weight_decay'])
  c.schedule = dict(name='staircase', peak=run['peak'], warmup_steps=o['warmup_steps'], factor=o['factor'],
                    at=o['at'])
  c.train.update(steps=run['steps'], batch_size=run['batch_size'], clip=o['clip'], log_every=100,
                 stats_every=1000)
  c.eval.update(every=1000, batches=64, batch_size=256)
  c.checkpoint.update(every=1000)
  return c


def smoke(c):
  """Shrinks `c` as `common.smoke` does; shared experts, choices and groups get as small as the experts."""
  for block in c.blocks.values():
    sparse = common.sparse(block)
    if sparse is None:
      continue
    if 'num_shared' in block:
      block.d_ff = 128
    router = sparse.router
    if 'k' in router:
      router.k = min(router.k, 3)
    if 'num_groups' in router:
      router.num_groups, router.kept_groups = min(router.num_groups, 4), min(router.kept_groups, 2)
  c.schedule.warmup_steps = 5
  return common.smoke(c)
