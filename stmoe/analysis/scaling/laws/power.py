"""Loss against one size: a straight line in logarithms, for each architecture apart.

Scaling Laws vs Model Architectures (arXiv:2207.10551) fits this law with FLOPs, parameters or throughput as
the size: `--column x=flops --by architecture`. The paper publishes slopes that are not at hand. There is no
irreducible loss: do not extrapolate far.
"""

import numpy as np

from stmoe.analysis.scaling import coefficient

SOURCE = 'arXiv:2207.10551'
FORMULA = 'L = (scale / x)^alpha'
COLUMNS = ('x',)
COEFFICIENTS = dict(
    alpha=coefficient.Coefficient(-1.0, 2.0, (0.03, 0.1, 0.3)),
    scale=coefficient.Coefficient(1e-6, 1e60, (1e6, 1e10, 1e14, 1e20), log=True))
# x is the number of parameters in both. clark_dense: the dense models of arXiv:2202.01169.
# kaplan: arXiv:2001.08361, as quoted there.
PUBLISHED = {'clark_dense': dict(alpha=0.078, scale=3.568e13), 'kaplan': dict(alpha=0.076, scale=8.8e13)}


def predict(coefficients, table):
  """Returns the loss f64[..., R] in nats of runs with column x f64[R]."""
  return np.exp(coefficients['alpha'] * (np.log(coefficients['scale']) - np.log(table['x'])))


def size(table):
  """Returns f64[R]: x."""
  return table['x']


def derived(coefficients):
  """Returns dict(per_tenfold): the factor of the loss at ten times the size."""
  return dict(per_tenfold=10.0 ** -coefficients['alpha'])


def advice(table):
  """Returns [], as these runs leave nothing open that the rank of the fit would not tell."""
  return []
