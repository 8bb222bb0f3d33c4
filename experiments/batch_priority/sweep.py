"""V-MoE on digits at five capacities, with and without batch-prioritised routing.

Models are trained and evaluated alike, or trained with capacity to spare and evaluated with less.
"""

from stmoe.experiments import sizes

FIELD = 'blocks.m.router.capacity_factor'
FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5)
SPARE = FACTORS[-1]


def runs(size='small'):
  """Yields a run per capacity, priority and seed; `large` is ImageNet (vmoe/bpr)."""
  seeds = sizes.seeds(size)
  experiment = 'vmoe/bpr' if size == 'large' else 'vmoe/digits:method=bpr'
  usual = sizes.SMOKE if size == 'smoke' else sizes.WHOLE | ({} if size == 'large' else {'train.steps': 600})
  for factor in FACTORS:
    for priority in (False, True):
      for seed in seeds:
        fields = {FIELD: (factor, factor), 'blocks.m.router.batch_priority': priority, 'seed': seed}
        yield dict(name=name(factor, priority), experiment=experiment, overrides=fields | usual,
                   evaluations={FIELD: [(SPARE, less) for less in FACTORS[:-1]]} if factor == SPARE else {})


def name(factor, priority):
  """Returns the name of the runs of a capacity, with priority or in order of position."""
  return f'{"priority" if priority else "position"}_{factor}'
