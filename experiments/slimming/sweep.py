"""SMoE-Dropout and learned routers of the same layer, evaluated with 1 to all 16 experts."""

from stmoe.experiments import sizes

FIELD = 'blocks.m.router.eval_k'
K = (1, 2, 4, 8, 16)
SCHEDULES = ('linear_increase', 'constant', 'linear_decrease')


def runs(size='small'):
  """Yields a run per schedule of k and seed; every model is evaluated at each of K."""
  small = '' if size == 'large' else ',smoke'
  usual = {'smoke': sizes.SMOKE, 'small': sizes.WHOLE | {'train.steps': 1000, 'eval.batches': 50}}
  evaluated = K[:4] if small else K      # of 8 experts, of 16
  for schedule in SCHEDULES:
    for seed in sizes.seeds(size):
      fields = usual.get(size, sizes.WHOLE) | {'seed': seed}
      yield dict(name=schedule, experiment=f'smoe_dropout/schedules:schedule={schedule}{small}',
                 overrides=fields, evaluations={FIELD: list(evaluated)})
