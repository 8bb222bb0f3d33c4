"""Systems of three families: one network, experts with a gate that gradients train, MixER's fitted gate.

Every seed has systems of its own. Models then meet new systems, of which only contexts are learned.
"""

from stmoe.experiments import sizes

METHODS = ('one', 'wide', 'gradient', 'mixer')
ADAPTED = ('one', 'gradient', 'mixer')
# A quarter of the steps, and a third at three times the rate for new systems. Large keeps those of the files.
SMALL = {'train.steps': 2000}
SMALL_NEW = {'train.steps': 500, 'schedule.peak': 3e-3}
# Trajectories of a system, to train on and held out. The files have two of each.
DATA = {'data.trajectories': 4, 'data.train_trajectories': 4, 'data.held_out': 8}
NEW = 1000                               # what is added to a seed to draw new systems


def runs(size='small'):
  """Yields, of every seed, a run of every method, and what some of them become on new systems."""
  for seed in sizes.seeds(size):
    for method in METHODS:
      name, experiment, fields = begun = _run(size, method, 'families', SMALL, seed, seed)
      yield name, experiment, fields
      if method in ADAPTED:
        name, experiment, fields = _run(size, method, 'adapt', SMALL_NEW, seed, NEW + seed)
        yield dict(name=f'{name}_new', experiment=experiment, overrides=fields,
                   start=dict(run=begun, command='finetune'))


def _run(size, method, file, small, seed, draw):
  """(name, experiment, overrides) of a method on the systems number `draw`."""
  fields = {'data.draw': draw} | ({} if size == 'smoke' else DATA)
  models = {method: (f'mixer/{file}:method={method}', fields)}
  return next(sizes.fitted(size, models, small, {}, (seed,)))
