"""SMoE, MomentumSMoE, Robust MomentumSMoE and AdamSMoE in a deeper small model."""

from stmoe.experiments import sizes

METHODS = ('smoe', 'momentum_smoe', 'robust_momentum_smoe', 'adam_smoe')


def runs(size='small'):
  """Yields a run of every method and seed."""
  return sizes.runs(size, {method: f'method={method}' for method in METHODS})
