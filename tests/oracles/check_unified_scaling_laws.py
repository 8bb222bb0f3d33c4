"""Checks of the scaling laws: formula evaluations, and fits to synthetic points."""

import numpy as np

from stmoe import lookup
from stmoe.analysis.scaling import fit

CLARK = ('a', 'b', 'c', 'd', 'e_start', 'e_max')


def _decimal(case, coefficients):
  """Returns the coefficients for base-10 logarithms of those for the case's base, in whose units c, d are."""
  unit = np.log10(case.option('log_base', {10: 10.0, 2: 2.0, 'e': np.e}, 10))
  case.option('N_unit', {'parameters inside the formula': None}, 'parameters inside the formula')
  return dict(coefficients, c=coefficients['c'] / unit, d=coefficients['d'] * unit)


def clark_law(case):
  law = lookup.module('law', 'clark')
  coefficients = _decimal(case, dict(zip(CLARK, case['coef'].astype(np.float64))))
  n, experts = np.meshgrid(1e6 * case['N'].astype(np.float64), case['E'].astype(np.float64), indexing='ij')
  table = dict(n_dense=n, experts=experts)                           # [7, 10]
  case.assert_close('E_hat', law.saturation.saturated(experts[0], *list(coefficients.values())[4:]))
  case.assert_close('loss', law.predict(coefficients, table))
  case.assert_close('epc_millions', law.equivalent(coefficients, table) / 1e6)


def clark_fit(case):
  """Every point within 3 noise + 1e-3; without noise a within 0.003 and c within 0.002."""
  law, noise = lookup.module('law', 'clark'), case.config['noise']
  n, experts, loss = (case[name].astype(np.float64) for name in ('N_millions', 'E', 'loss'))
  found = fit.fit(law, dict(n_dense=1e6 * n, experts=experts, loss=loss))
  assert np.abs(found.residuals).max() <= 3 * noise + 1e-3
  true = dict(zip(CLARK, case['true_coef'].astype(np.float64)))
  if not noise:
    assert abs(found.coefficients['a'] - true['a']) < 0.003
    assert abs(found.coefficients['c'] - true['c']) < 0.002


def fine_grained_law(case):
  law = lookup.module('law', 'fine_grained')
  case.assert_close('loss', law.predict(case.config, dict(
      n_total_nonemb=1e6 * case['N_millions'].astype(np.float64), granularity=case['G'].astype(np.float64),
      tokens=1e9 * case['D_billions'].astype(np.float64))))


def joint_law(case):
  law = lookup.module('law', 'joint')
  case.assert_close('loss', law.predict(_joint(case), dict(
      n_active_incl_emb=1e6 * case['N_act_millions'].astype(np.float64), experts=case['E'].astype(np.float64),
      tokens=1e9 * case['D_billions'].astype(np.float64))))


def joint_optimum(case):
  m, mu, n, nu = lookup.module('law', 'joint').reduced(_joint(case), case['E'].astype(np.float64))
  for name, value in dict(m=m, mu=mu, n=n, nu=nu).items():
    case.assert_close(name, value)


def _joint(case):
  """The coefficients of the case by our names."""
  names = dict(al='alpha', de='delta', ga='gamma', be='beta', om='omega', ze='zeta', es='e_start', em='e_max')
  return {names.get(key, key): value for key, value in case.config.items()}
