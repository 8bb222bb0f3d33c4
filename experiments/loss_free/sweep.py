"""Balance by biases or by an auxiliary loss, at several strengths of both."""

from stmoe.experiments import sizes

ALPHAS = (0.0001, 0.001, 0.01)
RATES = (0.001, 0.01)
SEEDS = range(6)                         # of the small size: three left every claim open


def runs(size='small'):
  """Yields a run per strategy, strength and seed."""
  small = '' if size == 'large' else ',smoke'
  usual = {'smoke': sizes.SMOKE, 'small': sizes.WHOLE | {'train.steps': 1000, 'eval.batches': 50}}
  models = {f'aux_{alpha}': f'strategy=aux,alpha={alpha}' for alpha in ALPHAS}
  models |= {f'bias_{rate}': f'strategy=loss_free,u={rate}' for rate in RATES}
  for name, argument in models.items():
    for seed in SEEDS if size == 'small' else sizes.seeds(size):
      fields = usual.get(size, sizes.WHOLE) | {'seed': seed}
      yield name, f'loss_free_balancing/strategies:{argument}{small}', fields
