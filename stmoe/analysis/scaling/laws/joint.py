"""Loss against active size, tokens and experts: Chinchilla's law with coefficients that depend on experts.

Joint MoE Scaling Laws: MoE Can Be Memory Efficient (arXiv:2502.05172), eq. 6. N active parameters with both
embeddings, natural logarithms, loss in nats; exponents are written with their negative sign.
"""

import numpy as np

from stmoe.analysis.scaling import coefficient
from stmoe.analysis.scaling import saturation

SOURCE = 'arXiv:2502.05172, eq. 6'
FORMULA = "L = a E'^delta N^(alpha + gamma ln E') + b E'^omega D^(beta + zeta ln E') + c"
COLUMNS = ('n_active_incl_emb', 'tokens', 'experts')
_SLOPE = coefficient.Coefficient(-0.2, 0.2, (-0.03, 0.0, 0.03))
# Differs: the paper's grid has -0.5, 0, 0.5 for delta, gamma, omega and zeta; with that grid all but
# a few starts are hopelessly far off.
COEFFICIENTS = dict(
    a=coefficient.Coefficient(1e-2, 1e6, (30.0, 100.0, 300.0), log=True),
    alpha=coefficient.Coefficient(-2.0, -0.01, (-0.25, -0.15)),
    delta=coefficient.Coefficient(-2.0, 2.0, (-0.3, 0.0)), gamma=_SLOPE,
    b=coefficient.Coefficient(1e-2, 1e6, (30.0, 100.0, 300.0), log=True),
    beta=coefficient.Coefficient(-2.0, -0.01, (-0.25, -0.15)),
    omega=coefficient.Coefficient(-2.0, 2.0, (0.0, 0.5)), zeta=_SLOPE,
    c=coefficient.Coefficient(1e-3, 10.0, (0.5, 1.0, 2.0), log=True),
    e_start=saturation.E_START, e_max=saturation.E_MAX)
# Table 3.
PUBLISHED = {'switch': dict(
    a=35.91, alpha=-0.1889, delta=-0.2285, gamma=0.0098, b=35.98, beta=-0.1775, omega=0.5529, zeta=-0.0259,
    c=1.3637, e_start=2.0732, e_max=290.4521)}
SIZE, HELD = 'n_active_incl_emb', ('experts',)


def reduced(coefficients, experts):
  """Returns (m, mu, n, nu) of L = m N^mu + n D^nu + c at a number of experts (the paper's table 4)."""
  k = coefficients
  e = saturation.saturated(experts, k['e_start'], k['e_max'])
  log = np.log(e)
  return (k['a'] * e ** k['delta'], k['alpha'] + k['gamma'] * log,
          k['b'] * e ** k['omega'], k['beta'] + k['zeta'] * log)


def predict(coefficients, table):
  """Returns the loss f64[..., R] in nats of runs with columns n_active_incl_emb, tokens, experts f64[R]."""
  m, mu, n, nu = reduced(coefficients, table['experts'])
  return m * table['n_active_incl_emb'] ** mu + n * table['tokens'] ** nu + coefficients['c']


def size(table):
  """Returns f64[R]: training FLOPs, 6 N D, and among equals experts."""
  return 6.0 * table['n_active_incl_emb'] * table['tokens'] * (1.0 + 1e-6 * np.log(table['experts']))


def derived(coefficients):
  """Returns dict(n_exponent): the power of the budget that the best active size grows with at one expert."""
  _, mu, _, nu = reduced(coefficients, 1.0)
  return dict(n_exponent=nu / (mu + nu))


def flops_per_token(n, held):
  """Returns 6 N of the active parameters; routers are ignored, as in the paper."""
  return 6.0 * n


def advice(table):
  """Returns lines on what these runs leave open: e_start and e_max."""
  return saturation.advice(table)
