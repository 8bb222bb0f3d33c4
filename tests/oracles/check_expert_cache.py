"""Checks of expert caches: hits and residents of each policy on recorded traces, exactly."""

import numpy as np

from stmoe.analysis import serving
from stmoe.analysis.serving import expert_cache


def policy_trace(case):
  c = case.config
  trace = serving.Trace(case['trace'], c['E'])
  assert trace.chosen.shape == (c['steps'], c['layers'], c['k'])
  policies = [name.removeprefix('hits_') for name in case.names('hits_')]
  assert policies
  for policy in policies:
    found = expert_cache.replay(trace, policy, c['slots_per_layer'])
    np.testing.assert_array_equal(found.hits, case[f'hits_{policy}'])
    np.testing.assert_array_equal(found.resident, case[f'resident_{policy}'])
    assert found.hits.sum() == c['total_hits'][policy]
