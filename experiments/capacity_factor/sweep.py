"""Switch trained at five capacities, three seeds each; every trained model is evaluated at all of them."""

from stmoe.experiments import sizes
from stmoe.sweep import combine

FIELD = 'blocks.m.router.capacity_factor'
FACTORS = (0.5, 0.75, 1.0, 1.25, 2.0)


def name(factor):
  """Returns the name of the runs that are trained at `factor`."""
  return f'train_{factor}'


def runs(size='small'):
  """Yields a run per training capacity and seed."""
  experiment, fields = sizes.model(size, 'method=switch')
  for factor in FACTORS:
    for seed in combine.over('seed', sizes.seeds(size)):
      yield dict(name=name(factor), experiment=experiment, overrides=fields | {FIELD: (factor, 2.0)} | seed,
                 evaluations={FIELD: [(factor, evaluated) for evaluated in FACTORS]})
