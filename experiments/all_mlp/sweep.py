"""Models without attention, dense and sparse, against Transformers, dense and sparse."""

from stmoe.experiments import sizes

METHODS = ('dense', 'gmlp', 'switch', 'gshard', 'smlp')


def runs(size='small'):
  """Yields a run of every method and seed."""
  return sizes.runs(size, {method: f'method={method}' for method in METHODS})
