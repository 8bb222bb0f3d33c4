"""Random routing against gating, with and without THOR's consistency; the same of dropout in dense models."""

from stmoe.experiments import sizes

ONCE = {'loss.passes': 1, 'loss.consistency': 0.0}
TWICE = ('thor', 'r_drop')
STEPS = {'smoke': 4, 'small': 240, 'large': 2000}


def runs(size='small'):
  """Yields a run of every model and seed, all with equal active FLOPs."""
  models = {'dense': 'method=dense', 'switch': 'method=switch', 'random': ('method=thor', ONCE),
            'thor': 'method=thor', 'dropout': ('method=r_drop', ONCE), 'r_drop': 'method=r_drop'}
  for name, experiment, fields in sizes.runs(size, models):
    # A step of two passes costs two: half of the steps at equal FLOPs.
    yield name, experiment, fields | {'train.steps': STEPS[size] // (2 if name in TWICE else 1)}
