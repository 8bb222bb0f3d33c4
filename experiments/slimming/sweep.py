"""SMoE-Dropout, learned routers of the same layer and a dense twin, evaluated with 1 to all experts."""

from stmoe.experiments import sizes

FIELD = 'blocks.m.router.eval_k'
K = (1, 2, 4, 8, 16)
TRAINED_K = 2                            # of the learned routers
SCHEDULES = ('linear_increase', 'constant', 'linear_decrease')
LEARNED = ('learned', 'learned_balance')
# The width of all experts together; that of the paper's size is in the file.
DENSE = {'blocks.m.d_ff': 8 * 128}


def runs(size='small'):
  """Yields a run per model and seed; models with experts are evaluated at each of K."""
  small = '' if size == 'large' else ',smoke'
  usual = {'smoke': sizes.SMOKE, 'small': sizes.WHOLE | {'train.steps': 1000, 'eval.batches': 50}}
  evaluations = {FIELD: list(K[:4] if small else K)}                 # of 8 experts, of 16
  models = {name: f'smoe_dropout/schedules:schedule={name}{small}' for name in SCHEDULES}
  models |= {name: f'smoe_dropout/enwik8:method={name}{small}' for name in ('dense', *LEARNED)}
  for name, experiment in models.items():
    dense_sizes = DENSE if name == 'dense' and small else {}
    for seed in sizes.seeds(size):
      yield dict(name=name, experiment=experiment, evaluations={} if name == 'dense' else evaluations,
                 overrides=usual.get(size, sizes.WHOLE) | dense_sizes | {'seed': seed})
