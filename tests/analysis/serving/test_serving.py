"""Caches, schedules and placements on made traces: what must hold for every trace, and both commands."""

import numpy as np
import pytest

from stmoe import errors
from stmoe.analysis import serving
from stmoe.analysis.serving import expert_cache
from stmoe.analysis.serving import hybrimoe
from stmoe.analysis.serving import moetuner

LAYERS, E, K = 3, 8, 2


@pytest.fixture(scope='module')
def trace():
  """Sixty tokens that keep an expert for a while; some choices are none."""
  rng = np.random.default_rng(0)
  chosen = np.zeros((60, LAYERS, K), np.int32)
  for layer in range(LAYERS):
    at = rng.choice(E, K, replace=False)
    for step in range(60):
      if rng.random() < 0.4:
        at = rng.choice(E, K, replace=False, p=np.arange(1, E + 1) / 36)
      chosen[step, layer] = at
  chosen[rng.random(chosen.shape) < 0.05] = -1
  return serving.Trace(chosen, E)


def hits(trace, policy, slots=3):
  return expert_cache.replay(trace, policy, slots).hits.sum()


def renamed(trace):
  """The same trace with other numbers of experts."""
  order = np.random.default_rng(1).permutation(E)
  return serving.Trace(np.where(trace.chosen >= 0, order[trace.chosen], -1).astype(np.int32), E)


def test_nothing_beats_the_known_future_and_room_for_all_misses_each_once(trace):
  best = hits(trace, 'belady')
  assert best > hits(trace, 'lru') and best >= hits(trace, 'lfu')
  for policy in expert_cache.POLICIES:
    touched = [len(np.unique(trace.chosen[:, layer][trace.chosen[:, layer] >= 0])) for layer in range(LAYERS)]
    assert hits(trace, policy, E) == (trace.chosen >= 0).sum() - sum(touched)
    resident = expert_cache.replay(trace, policy, 3).resident
    assert resident.sum(-1).max() == 3
  assert hits(renamed(trace), 'belady') == best and hits(renamed(trace), 'lru') == hits(trace, 'lru')
  always = expert_cache.most_used(trace, E)
  assert always.hits.sum() == (trace.chosen >= 0).sum()


def test_repeats_are_more_than_chance_where_tokens_keep_their_experts(trace):
  again, chance = serving.repeats(trace)
  assert (again > chance + 0.2).all()
  shuffled = serving.Trace(np.random.default_rng(2).permutation(trace.chosen), E)
  again, chance = serving.repeats(shuffled)
  assert np.abs(again - chance).max() < 0.15


def test_time_falls_with_faster_transfers_and_prefetching_with_room_for_all_changes_no_hit(trace):
  slow, fast = (hybrimoe.decode(trace, 3, hybrimoe.Times(move=move)).time.mean() for move in (2.0, 0.2))
  assert fast < slow
  only = hybrimoe.schedule([0], [1, 2], {0: 1, 1: 1, 2: 1}, hybrimoe.Times(), cpu=False)
  assert only.gpu == [0, 1, 2] and only.cpu == [] and only.time == pytest.approx(1.5)
  with_cpu = hybrimoe.schedule([0], [1, 2], {0: 1, 1: 1, 2: 1}, hybrimoe.Times(move=9.0))
  assert with_cpu.cpu == [2, 1] and with_cpu.gpu == [0]
  full = hybrimoe.decode(trace, E, prefetch=2)
  assert full.gpu_hits > hybrimoe.decode(trace, 3).gpu_hits


def test_a_released_score_is_of_another_expert():
  scores, probs = np.zeros(3), np.array([0.1, 0.6, 0.3])
  assert hybrimoe.scored(scores, probs, 2, 1.0).tolist() == [0, 0.6, 0.3]
  assert hybrimoe.scored_as_released(scores, np.array([0.1, 0.3, 0.6]), 2, 1.0).tolist() == [0, 0.6, 0.3]


def test_placements_are_balanced_and_near(trace):
  load, moves = moetuner.loads(trace), moetuner.transitions(trace)
  assert load.sum() == (trace.chosen >= 0).sum()
  for devices, nodes in ((4, 2), (8, 2)):                            # exact, and by turns
    distance = moetuner.distances(devices, nodes)
    usual = moetuner.contiguous(LAYERS, E, devices)
    of = moetuner.place(trace, distance)
    assert (np.stack([np.bincount(row, minlength=devices) for row in of]) == E // devices).all()
    numbered = np.stack([moetuner.clusters(counts, devices) for counts in load])
    found, before, unmoved = (moetuner.measured(p, load, moves, distance) for p in (of, usual, numbered))
    assert (found.imbalance <= before.imbalance + 1e-9).all()
    np.testing.assert_allclose(found.imbalance, unmoved.imbalance)   # the second stage moves whole clusters
    assert found.cost < unmoved.cost


@pytest.mark.parametrize('call, said', [
    (lambda: moetuner.distances(4, 3), 'devices=4 are not divided by nodes=3; nearest: 3'),
    (lambda: moetuner.clusters(np.ones(8, int), 3), 'devices=3 do not divide 8 experts; nearest: 2'),
    (lambda: expert_cache.replay(serving.Trace(np.zeros((1, 1, 1), int), 1), 'lur', 1), 'nearest: lru'),
    (lambda: expert_cache.replay(serving.Trace(np.zeros((1, 1, 1), int), 1), 'lru', 0), 'nearest: 1')])
def test_mistakes_are_one_line(call, said):
  with pytest.raises(errors.UserError, match=said):
    call()
