"""V-MoE on digits, trained at five capacities with and without batch-prioritised routing."""

from stmoe.experiments import sizes

FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5)


def runs(size='small'):
  """Yields a run per capacity, priority and seed; `large` is ImageNet (vmoe/bpr)."""
  seeds = sizes.seeds(size)
  experiment = 'vmoe/bpr' if size == 'large' else 'vmoe/digits:method=bpr'
  usual = sizes.SMOKE if size == 'smoke' else sizes.WHOLE | ({} if size == 'large' else {'train.steps': 600})
  for factor in FACTORS:
    for priority in (False, True):
      for seed in seeds:
        router = {'capacity_factor': (factor, factor), 'batch_priority': priority}
        fields = {f'blocks.m.router.{key}': value for key, value in router.items()}
        yield name(factor, priority), experiment, fields | usual | {'seed': seed}


def name(factor, priority):
  """Returns the name of the runs of a capacity, with priority or in order of position."""
  return f'{"priority" if priority else "position"}_{factor}'
