"""Checks of HybriMoE: scores, the schedule of a layer, the cache over a decoded text."""

import re

import numpy as np

from stmoe.analysis.serving import hybrimoe


def _time(text):
  """(of an expert, of a token, once) of a time such as '0.1*tokens+0.2 (+0.3 first)'."""
  number = r'[0-9.]+'
  each, _, first = text.partition('(+')
  token = re.search(rf'({number})\*tokens', each)
  rest = re.sub(rf'{number}\*tokens', '', each).replace('+', ' ').split()
  return (float(rest[0]) if rest else 0.0, float(token[1]) if token else 0.0,
          float(re.match(number, first)[0]) if first else 0.0)


def hybrid_schedule(case):
  c = case.config
  gpu, cpu = _time(c['gpu_time']), _time(c['cpu_time'])
  times = hybrimoe.Times(*gpu, *cpu, move=c['move_time'])
  real = lambda row: [int(expert) for expert in row if expert >= 0]
  assert len(case['resident']) == c['cases']
  for n in range(c['cases']):
    tokens = dict(enumerate(case['tokens'][n].tolist()))
    found = hybrimoe.schedule(real(case['resident'][n]), real(case['absent'][n]), tokens, times)
    assert (found.gpu, found.cpu) == (real(case['gpu_queue'][n]), real(case['cpu_queue'][n]))
    np.testing.assert_allclose([found.gpu_done, found.cpu_done, found.moved], case['finish'][n], rtol=1e-6)


def score_update(case):
  c = case.config
  layers, experts = c['layers'], c['E']
  update = dict(scores=hybrimoe.scored, scores_as_released=hybrimoe.scored_as_released)
  for name, scored in update.items():
    scores = case['initial_scores'].reshape(layers, experts).astype(np.float64)
    for row, probs in enumerate(case['routing_scores']):
      layer = row % layers
      scores[layer] = scored(scores[layer], probs[0].astype(np.float64), c['top_count'], c['alpha'])
      np.testing.assert_allclose(scores.ravel(), case[name][row], atol=1e-6)
      if name == 'scores':
        order = [int(expert) for expert in case['candidates'][row] if expert >= 0]
        assert hybrimoe.evicted(order, scores[layer]) == case['evict'][row]
        wanted = case['prefetch'][row]
        assert set(hybrimoe.greatest(scores[layer], len(wanted))) == set(wanted.tolist())
  assert len(case['routing_scores']) == c['steps'] * layers


def decode_trace(case):
  c = case.config
  layers, experts = c['layers'], c['E']
  resident = [np.flatnonzero(row).tolist() for row in case['initial_resident']]
  cache = hybrimoe.Cache(case['initial_scores'].reshape(layers, experts), c['slots_per_layer'], resident)
  for row, probs in enumerate(case['routing_scores'].astype(np.float64)):
    layer = row % layers
    cache.scores[layer] = hybrimoe.scored(cache.scores[layer], probs, c['top_count'], c['alpha'])
    done = cache.step(layer, hybrimoe.greatest(probs, c['k']), prefetch=c['prefetch_size'])
    for queue, name in ((done.gpu, 'gpu_queue'), (done.cpu, 'cpu_queue')):
      assert queue == [int(expert) for expert in case[name][row] if expert >= 0], (row, name)
    np.testing.assert_array_equal(cache.order, case['residency_order'][row])
    there = [[expert in order for expert in range(experts)] for order in cache.order]
    np.testing.assert_array_equal(there, case['resident_after'][row])
    assert [cache.hits, cache.misses] == case['hits_misses'][row].tolist()
  assert len(case['routing_scores']) == c['steps'] * layers
