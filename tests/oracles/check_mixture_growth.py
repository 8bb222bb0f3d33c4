"""Checks of MixtureGrowth: weights of the small networks and of the grown one, from templates."""

import numpy as np

from stmoe.surgery import grow


def weights(case):
  c = case.config
  templates, sets = case['templates'], tuple(c['member_template_sets'])
  assert templates.shape[1:] == (c['templates'], c['out'], c['inp'])
  parts = grow.members(templates, case['coefficients'], sets)
  case.assert_close('small0', parts[0])
  case.assert_close('small1', parts[1])
  case.assert_close('grown', grow.grown(parts))
  # The recorded coefficients of the small networks are what `coefficients` leaves.
  begun = grow.coefficients(case['coefficients'][:2], 'zero')
  blocks = grow.grown(grow.members(templates, begun, sets))
  np.testing.assert_array_equal(blocks[:c['out'], c['inp']:], 0)
