"""A dense model, then half as much training again: dense, upcycled, or sparse from scratch."""

from stmoe.experiments import sizes

DENSE = {'smoke': 4, 'small': 240, 'large': 2400}
SPARSE = 'upcycling/stdlib:method=grains'


def runs(size='small'):
  """Yields the five runs of every seed; `more` is the dense budget and half of it, `extra` is that half."""
  seeds, steps = sizes.seeds(size), DENSE[size]
  usual = dict(sizes.SMOKE if size == 'smoke' else sizes.WHOLE)
  usual.pop('schedule.warmup_steps', None)
  for seed in seeds:
    fields = lambda steps, seed=seed: usual | {'train.steps': steps, 'seed': seed}
    dense = ('dense', 'upcycling/stdlib:method=dense', fields(steps))
    yield dense
    # The schedule does not know where training will stop, so this run continues the dense run.
    yield 'dense_more', 'upcycling/stdlib:method=dense', fields(steps * 3 // 2)
    yield dict(name='upcycled', experiment=SPARSE, overrides=fields(steps * 3 // 2),
               start={'run': dense, 'flags': ['--granularity', '2']})
    yield 'scratch_extra', SPARSE, fields(steps // 2)
    yield 'scratch_more', SPARSE, fields(steps * 3 // 2)
