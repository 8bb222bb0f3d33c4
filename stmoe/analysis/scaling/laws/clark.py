"""Loss against dense size and experts at a fixed number of tokens: bilinear in logarithms, saturating.

Unified Scaling Laws for Routed Language Models (arXiv:2202.01169), eq. 1. Logarithms of base 10, loss in
nats, N the parameters of the dense model of equal compute per token. c > 0: routing helps less as N grows,
and no more at n_cutoff.

Its eq. 2 is for models that differ in k or in the share of routed layers. It has the same form in forward
TFLOPs per token and in parameters over FLOPs: `--column n_dense=... --column experts=...` fits eq. 2.
"""

import numpy as np

from stmoe.analysis.scaling import coefficient
from stmoe.analysis.scaling import saturation

SOURCE = 'arXiv:2202.01169, eq. 1'
FORMULA = "log10 L = a log10 N + b log10 E' + c log10 N log10 E' + d"
COLUMNS = ('n_dense', 'experts')
COEFFICIENTS = dict(
    a=coefficient.Coefficient(-1.0, 0.0, (-0.2, -0.08)),
    b=coefficient.Coefficient(-1.0, 0.5, (-0.1, 0.0)),
    c=coefficient.Coefficient(-0.1, 0.1, (0.0, 0.01)),
    d=coefficient.Coefficient(-1.0, 6.0, (0.5, 1.0, 2.0)),
    e_start=saturation.E_START, e_max=saturation.E_MAX)
# Table 3, three decimals. n_cutoff is as published: recomputed from these decimals it would be 1000e9,
# 32e9 and 215e9. The order of hash and rl_r is within rounding.
PUBLISHED = {
    's_base': dict(a=-0.082, b=-0.108, c=0.009, d=1.104, e_start=1.847, e_max=314.478, n_cutoff=937e9),
    'rl_r': dict(a=-0.083, b=-0.126, c=0.012, d=1.111, e_start=1.880, e_max=469.982, n_cutoff=85e9),
    'hash': dict(a=-0.087, b=-0.136, c=0.012, d=1.157, e_start=4.175, e_max=477.741, n_cutoff=83e9),
}
DECADES = 1.9         # of n_dense, that the paper's own sweep spans: 15M to 1.3B


def predict(coefficients, table):
  """Returns the loss f64[..., R] in nats of runs with columns n_dense, experts f64[R]."""
  k = coefficients
  n = np.log10(table['n_dense'])
  e = np.log10(saturation.saturated(table['experts'], k['e_start'], k['e_max']))
  return 10.0 ** (k['a'] * n + k['b'] * e + k['c'] * n * e + k['d'])


def size(table):
  """Returns f64[R]: n_dense first, and among equals experts."""
  return np.log(table['n_dense']) + 1e-6 * np.log(table['experts'])


def derived(coefficients):
  """Returns dict(n_cutoff): the dense size from which on experts no longer help; inf for c <= 0.

  Differs: from rounded coefficients n_cutoff is off by up to a factor of three; give full precision.
  """
  b, c = coefficients['b'], coefficients['c']
  exponent = np.where(c > 0, -b / np.where(c > 0, c, 1.0), np.inf)
  with np.errstate(over='ignore'):
    return dict(n_cutoff=10.0 ** exponent)


def equivalent(coefficients, table):
  """Returns the effective parameter count f64[..., R]: the dense size of equal predicted loss.

  log N' = (alpha(E') log N + b (log E' - log e_start)) / alpha(e_start), alpha(x) = a + c log x.
  """
  k = coefficients
  n = np.log10(table['n_dense'])
  e = np.log10(saturation.saturated(table['experts'], k['e_start'], k['e_max']))
  start = np.log10(k['e_start'])
  return 10.0 ** (((k['a'] + k['c'] * e) * n + k['b'] * (e - start)) / (k['a'] + k['c'] * start))


def advice(table):
  """Returns lines on what these runs leave open: e_start, e_max, c."""
  decades = np.log10(table['n_dense'].max() / table['n_dense'].min())
  short = [f'c needs {DECADES:g} decades of n_dense, here are {decades:.1f}'] if decades < DECADES else []
  return short + saturation.advice(table)
