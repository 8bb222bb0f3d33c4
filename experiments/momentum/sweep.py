"""SMoE, MomentumSMoE, Robust MomentumSMoE and AdamSMoE, evaluated on clean and on corrupted text."""

from stmoe.experiments import sizes

FIELD = 'data.eval_replaced'
SHARES = (0.025, 0.1)                    # of the tokens
METHODS = ('smoe', 'momentum_smoe', 'robust_momentum_smoe', 'adam_smoe')


def runs(size='small'):
  """Yields a run of every method and seed; every model is evaluated with each of SHARES of wrong tokens."""
  for name, experiment, fields in sizes.runs(size, {method: f'method={method}' for method in METHODS}):
    yield dict(name=name, experiment=experiment, overrides=fields, evaluations={FIELD: list(SHARES)})
