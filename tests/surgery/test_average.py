"""The baseline of random groups: means by usage, other groups by other seeds and layers."""

import numpy as np

from stmoe.surgery import average
from tests.surgery import trained

LOAD = np.array([1.0, 4.0, 2.0, 5.0])


def test_random_groups_are_averaged():
  cfg = trained.config()
  params = trained.params(cfg)
  tables = {}
  for seed in range(4):
    made, changes = average.operate(params, cfg, trained.calibration(load=LOAD), seed=seed)
    assert changes['blocks.m.router']['num_experts'] == 2
    for block in (1, 3):
      layer, before = (p['decoder']['layers'][block]['layer'] for p in (made, params))
      table = layer['router']['table']
      for group in (0, 1):
        own = np.flatnonzero(table == group)
        mean = np.tensordot(LOAD[own] / LOAD[own].sum(), before['experts']['wi'][own], 1)
        np.testing.assert_allclose(layer['experts']['wi'][group], mean, rtol=1e-5, atol=1e-6)
      tables[seed, block] = tuple(table.tolist())
  assert len(set(tables.values())) > 1 and all(sum(table) == 2 for table in tables.values())
  made, _ = average.operate(params, cfg, trained.none, weights='uniform')
  now, was = (p['decoder']['layers'][1]['layer']['experts']['wi'] for p in (made, params))
  own = np.flatnonzero(np.array(tables[0, 1]) == 0)
  np.testing.assert_allclose(now[0], was[own].mean(0), rtol=1e-5, atol=1e-6)
