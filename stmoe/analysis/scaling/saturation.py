"""The saturating number of experts that the laws of Clark et al. and of Ludziejewski et al. share."""

import numpy as np

from stmoe.analysis.scaling import coefficient

E_START = coefficient.Coefficient(1.001, 16.0, (1.5, 3.0), log=True)
E_MAX = coefficient.Coefficient(17.0, 1e6, (100.0, 500.0), log=True)
MANY = 128


def saturated(experts, e_start, e_max):
  """Returns the effective number of experts, between e_start (at 1 expert) and e_max (at infinitely many).

  1/E' = 1/(E - 1 + 1/(1/e_start - 1/e_max)) + 1/e_max (arXiv:2202.01169, eq. 1).

  >>> saturated(1, 1.847, 314.478)
  1.847
  """
  start = 1.0 / (1.0 / e_start - 1.0 / e_max)
  return 1.0 / (1.0 / (experts - 1.0 + start) + 1.0 / e_max)


def advice(table):
  """Returns lines on e_start and e_max: what the numbers of experts of these runs leave open."""
  experts = table['experts']
  lines = []
  if experts.max() < MANY:
    lines.append(f'e_max needs runs of {MANY} experts or more, the most here is {experts.max():g}; '
                 '--fix e_max=VALUE takes it from elsewhere')
  if not {1.0, 2.0} <= set(np.unique(experts)):
    lines.append('e_start needs runs of 1 and of 2 experts; --fix e_start=VALUE takes it from elsewhere')
  return lines
