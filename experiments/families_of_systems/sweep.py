"""Systems of three families: one network, experts with a gate that gradients train, MixER's fitted gate.

Every seed has systems of its own. Models then meet new systems, of which only contexts are learned.
"""

from stmoe.experiments import sizes

# Name -> (method of the files, overrides of the training).
METHODS = {'one': ('one', {}), 'mixer': ('mixer', {}),
           'balanced': ('gradient', {'losses.balance': (0.01, 'mean')}), 'gradient': ('gradient', {}),
           'wide': ('wide', {})}
ADAPTED = ('one', 'mixer', 'balanced')
# A fifth of the steps, a third of those for new systems, at three times the rate. Large is the files' own.
SMALL = {'families': {'train.steps': 1500, 'schedule.peak': 3e-3},
         'adapt': {'train.steps': 500, 'schedule.peak': 3e-3}}
# Trajectories of a system, to train on and held out. The files have two of each.
DATA = {'data.trajectories': 4, 'data.train_trajectories': 4, 'data.held_out': 8}
NEW = 1000                               # what is added to a seed to draw new systems


def runs(size='small'):
  """Yields a run of every method and seed, and what those of ADAPTED become on new systems."""
  for method in METHODS:
    for seed in sizes.seeds(size):
      yield run(size, method, 'families', seed, seed)
      if method in ADAPTED:
        _, experiment, fields = run(size, method, 'adapt', seed, NEW + seed)
        yield dict(name=f'{method}_new', experiment=experiment, overrides=fields,
                   start=dict(run=run(size, method, 'families', seed, seed), command='finetune'))


def run(size, name, file, seed, draw):
  """Returns (name, experiment, overrides) of a method of mixer/`file` on the systems number `draw`."""
  method, own = METHODS[name]
  fields = (own if file == 'families' else {}) | {'data.draw': draw} | ({} if size == 'smoke' else DATA)
  return next(sizes.fitted(size, {name: (f'mixer/{file}:method={method}', fields)}, SMALL[file], {}, (seed,)))
