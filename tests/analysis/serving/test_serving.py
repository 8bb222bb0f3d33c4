"""Caches, schedules and placements on made traces: what must hold for every trace, and both commands."""

import numpy as np
import pytest

from stmoe import errors
from stmoe.analysis import serving
from stmoe.analysis.serving import expert_cache
from stmoe.analysis.serving import hybrimoe
from stmoe.analysis.serving import moetuner
from stmoe.analysis.serving import offloading
from stmoe.analysis.serving import overlap
from stmoe.analysis.serving import prefetch
from stmoe.analysis.serving import se_moe

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


def test_what_is_foreseen_is_there_when_it_is_asked_for():
  """Two layers with one slot: expert 0, then 1 or 2 in turn. Loads by hand."""
  trace = serving.Trace(np.array([[[0], [1]], [[0], [2]], [[0], [1]], [[0], [2]], [[0], [2]]]), 3)
  slow = hybrimoe.Times(cpu_once=1000.0)                             # so that everything runs on the GPU
  none = hybrimoe.decode(trace, 1, slow)
  known = hybrimoe.decode(trace, 1, slow, 1, wanted=prefetch.oracle(trace))
  usual = hybrimoe.decode(trace, 1, slow, 1, wanted=prefetch.most_used(trace))
  # Layer 0 misses once; layer 1 at steps 0 to 3, with the oracle never, with expert 2 at steps 0 and 2.
  assert (none.gpu_hits, known.gpu_hits, usual.gpu_hits) == (0.5, 0.9, 0.7)
  # Each loads 0 once. 1 and 2 are loaded 4 times, by the oracle too; with 2 foreseen, 1 twice and 2 thrice.
  assert [round(found.moves * 5) for found in (none, known, usual)] == [5, 5, 6]
  assert known.time[1] == 2 * slow.gpu and none.time[1] == 2 * slow.gpu + slow.move
  nobody = hybrimoe.decode(trace, 1, slow, 1, wanted=np.zeros((5, 2, 3)))
  assert nobody.moves == none.moves and (nobody.time == none.time).all()


def test_no_prediction_is_better_than_the_oracle_s(trace):
  times = {name: hybrimoe.decode(trace, 4, prefetch=K, wanted=foresee(trace)).time.mean()
           for name, foresee in prefetch.PREDICTIONS.items()}
  assert times['oracle'] < times['most_used'] and times['oracle'] < hybrimoe.decode(trace, 4).time.mean()
  assert prefetch.most_used(trace)[5].sum(-1) == pytest.approx(np.ones(LAYERS))


def test_a_ring_waits_where_a_copy_takes_longer():
  compute, copy = np.array([1.0, 3.0, 1.0, 1.0]), np.array([5.0, 4.0, 2.0, 2.0])
  double = se_moe.ring(compute, copy, 2)                             # copies of sections 2 and 3, then none
  assert (double.warm, double.time.tolist(), double.idle.tolist()) == (9, [2, 3, 1, 1], [1, 0, 0, 0])
  single = se_moe.ring(compute, copy, 1)
  assert (single.warm, single.time.tolist()) == (5, [4, 3, 2, 1])
  assert se_moe.ring(compute, copy, 9).warm == copy.sum() and not se_moe.ring(compute, copy, 9).idle.any()


def test_a_ring_of_all_layers_copies_nothing(trace):
  all_there = offloading.compared(trace, E, hybrimoe.Times())['policies']['ring']
  chosen = (trace.chosen >= 0).sum((1, 2))
  assert all_there['time'] == pytest.approx(0.5 * chosen.mean()) and all_there['loads'] == 0
  part = offloading.compared(trace, 6, hybrimoe.Times(move=0.25))['policies']['ring']      # 2 of 3 layers
  assert part['loads'] == LAYERS * E and part['time'] == pytest.approx(LAYERS * E * 0.25, rel=0.02)
  assert 'ring' not in offloading.compared(trace, 2, hybrimoe.Times())['policies']           # not one layer


def test_more_chunks_hide_more_of_what_is_shorter():
  assert [overlap.overlapped(2.0, 6.0, chunks) for chunks in (1, 2, 4)] == [8, 7, 6.5]
  costs = overlap.Costs(token=2.0, send=0.5, latency=0.25)
  # Of 4 devices the second gets 3/4 of 8 choices from others; the third sends 12/4: 6 * 0.5 + 3 * 0.25 a way.
  assert overlap.layer(np.array([2.0, 8.0, 0.0, 2.0]), 1, costs) == 16 + 2 * 3.75
  assert overlap.layer(np.array([2.0, 8.0, 0.0, 2.0]), 2, costs) == 16 + 3.75
  assert overlap.layer(np.array([5.0]), 1, costs) == 10              # nobody to send to


def test_a_released_score_is_of_another_expert():
  scores, probs = np.zeros(3), np.array([0.1, 0.6, 0.3])
  assert hybrimoe.scored(scores, probs, 2, 1.0).tolist() == [0, 0.6, 0.3]
  assert hybrimoe.scored_as_released(scores, np.array([0.1, 0.3, 0.6]), 2, 1.0).tolist() == [0, 0.6, 0.3]


def test_placements_are_balanced_and_near(trace):
  load, moves = serving.loads(trace), moetuner.transitions(trace)
  assert load.sum() == (trace.chosen >= 0).sum()
  for devices, nodes in ((4, 2), (8, 2)):                            # exact, and by turns
    distance = moetuner.distances(devices, nodes)
    usual = moetuner.contiguous(trace, devices)
    of = moetuner.place(trace, distance)
    assert (np.stack([np.bincount(row, minlength=devices) for row in of]) == E // devices).all()
    numbered = np.stack([moetuner.clusters(counts, devices) for counts in load])
    found, before, unmoved = (moetuner.measured(p, load, moves, distance) for p in (of, usual, numbered))
    assert (found.imbalance <= before.imbalance + 1e-9).all()
    np.testing.assert_allclose(found.imbalance, unmoved.imbalance)   # the second stage moves whole clusters
    assert found.cost < unmoved.cost


@pytest.mark.parametrize('call, said', [
    (lambda: se_moe.ring(np.ones(2), np.ones(2), 0), 'places=0: .* nearest: 1'),
    (lambda: overlap.overlapped(1.0, 1.0, 0), 'chunks=0: .* nearest: 1'),
    (lambda: moetuner.distances(4, 3), 'devices=4 are not divided by nodes=3; nearest: 3'),
    (lambda: moetuner.clusters(np.ones(8, int), 3), 'devices=3 do not divide 8 experts; nearest: 2'),
    (lambda: expert_cache.replay(serving.Trace(np.zeros((1, 1, 1), int), 1), 'lur', 1), 'nearest: lru'),
    (lambda: expert_cache.replay(serving.Trace(np.zeros((1, 1, 1), int), 1), 'lru', 0), 'nearest: 1')])
def test_mistakes_are_one_line(call, said):
  with pytest.raises(errors.UserError, match=said):
    call()
