"""Checks of STUN (arXiv:2409.06211): distances, clusters, the search of the threshold, representatives."""

import numpy as np

from stmoe.surgery import fewer
from stmoe.surgery import stun


NAMES = ('router', 'w1', 'w2', 'w3')


def clustering(case):
  c, rows = case.config, np.float64(case['router'])
  together = lambda: stun.coactivation_distance(np.float64(case['counts']))
  distance = case.option('distance', {
      'router': lambda: stun.router_distance(rows), 'router_norm': lambda: stun.router_distance(rows, True),
      'coact': together, 'mix': lambda: c['mix_weight'] * together() + stun.router_distance(rows)})()
  case.assert_close('distance', distance)
  clusters = stun.clustered(distance, c['threshold'], c['max_merges_top_k'])
  assert len(clusters) == c['clusters']
  case.assert_close('labels', _labels(clusters))


def _labels(clusters):
  labels = np.zeros(sum(map(len, clusters)), np.int32)
  for label, members in enumerate(clusters):
    labels[members] = label
  return labels


def coactivation(case):
  logits = np.float64(case['router_logits'])                         # [L, T, E]
  assert case.config['top_k'] == 2                                   # whatever the model uses
  both = np.zeros(logits.shape)
  np.put_along_axis(both, np.argsort(-logits, axis=-1, kind='stable')[..., :2], 1, axis=-1)
  counts = np.einsum('lti,ltj->lij', both, both)
  counts[:, range(logits.shape[-1]), range(logits.shape[-1])] = 0
  np.testing.assert_array_equal(counts, case['counts'])


def expert_pruning(case):
  c = case.config
  normed = case.option('division_by_norm', {True: True, False: False})
  distances = [stun.router_distance(np.float64(rows), normed) for rows in case['router']]
  clusters, tried = stun.searched(distances, c['target_total_experts'],
                                  [c['max_merges_per_layer']] * c['layers'], c['first_threshold'],
                                  c['first_step'])
  np.testing.assert_allclose(tried, case['thresholds_tried'], rtol=1e-9)
  assert np.isclose(tried[-1], c['accepted_threshold'])
  case.assert_close('num_experts', [len(own) for own in clusters])
  for layer, own in enumerate(clusters):
    arrays = {name: case[name][layer] for name in NAMES}
    wanted = {name: case[f'out_{name}_{layer}'] for name in NAMES}
    if len(own) > c['merge_max_clusters']:
      made = _members(arrays, wanted, own)
    else:
      shares = fewer.shares(own, np.ones(c['E']))
      made = {name: np.asarray(fewer.mixed(shares, array)) for name, array in arrays.items()}
    # The order of the experts is not significant: both are sorted by the first number of the router's row.
    orders = [np.argsort(tree['router'][:, 0]) for tree in (made, wanted)]
    for name in NAMES:
      np.testing.assert_allclose(made[name][orders[0]], wanted[name][orders[1]], rtol=1e-6, atol=1e-6)


def _members(arrays, wanted, clusters):
  """The representatives of clusters; of a pair, whose two are equally close, the one that was recorded."""
  bank, stay = [arrays[name] for name in NAMES[1:]], []
  for members in clusters:
    stay.append(stun.representative(bank, members))
    recorded = [e for e in members if (arrays['router'][e] == wanted['router']).all(1).any()]
    assert len(recorded) == 1
    if len(members) == 2:
      stay[-1] = recorded[0]
  return {name: array[stay] for name, array in arrays.items()}
