"""Checks of MoETuner: both programs reach the optimum that trying all placements finds."""

import re

import numpy as np

from stmoe.analysis import serving
from stmoe.analysis.serving import moetuner


def placement(case):
  c = case.config
  far = float(re.search(r'([0-9.]+) across nodes', c['distance'])[1])
  distance = moetuner.distances(c['devices'], c['nodes'], far)
  np.testing.assert_array_equal(distance, case['distance'])
  trace = serving.Trace(case['path'].T[:, :, None], c['E'])
  assert trace.chosen.shape == (c['tokens'], c['layers'], 1)
  load, moves = moetuner.loads(trace), moetuner.transitions(trace)
  np.testing.assert_array_equal(load, case['load']), np.testing.assert_array_equal(moves, case['transitions'])
  for of_experts, best in zip(load, case['best_max_load']):
    of = moetuner.clusters(of_experts, c['devices'])
    total = np.bincount(of, weights=of_experts, minlength=c['devices'])
    assert total.max() == best and (np.bincount(of) == c['E'] // c['devices']).all()
  best = moetuner.devices_of(case['clusters'], moves, distance)
  assert moetuner.measured(best, load, moves, distance).cost == case['best_stage2_cost'][0]
  for at, of in enumerate(case['placement']):
    found = moetuner.measured(of, load, moves, distance)
    np.testing.assert_allclose([found.cost, found.crossing],
                               [case['placement_cost'][at], case['placement_cross_fraction'][at]], rtol=1e-12)
    np.testing.assert_allclose(found.imbalance, case['placement_imbalance'][at], rtol=1e-12)
