"""Checks of MoETuner: both programs reach the optimum that trying all placements finds."""

import functools
import re

import numpy as np

from stmoe.analysis import serving
from stmoe.analysis.serving import moetuner


def placement(case):
  c = case.config
  stated = lambda place: float(re.search(f'([0-9.]+) {place}', c['distance'])[1])
  distances = functools.partial(moetuner.distances, c['devices'], c['nodes'])
  distance = np.where(distances(0.0) == 1, stated('same node'), distances(stated('across nodes')))
  np.testing.assert_array_equal(distance, case['distance'])
  trace = serving.Trace(case['path'].T[:, :, None], c['E'])
  assert trace.chosen.shape == (c['tokens'], c['layers'], 1)
  load, moves = serving.loads(trace), moetuner.transitions(trace)
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
