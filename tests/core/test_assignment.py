"""The invariants of an Assignment, each against a plain Python loop over random edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe.core import assignment
from stmoe.core.transport import rows

G, S, E, Z, K = 2, 12, 4, 1, 2
SEEDS = range(25)


def random_edges(seed, k=K, skew=0.0):
  """Choice-major edges with repeated experts, virtual ids, dead ids and padding; and the mask."""
  rng = np.random.default_rng(seed)
  expert = rng.integers(0, E + Z + 1, size=(G, S, k))
  expert = np.where(rng.random(expert.shape) < skew, 1, expert)
  mask = rng.random((G, S)) < 0.8
  weight = jnp.asarray(rng.normal(size=(G, S, k)), jnp.float32)
  edges = assignment.from_choices(jnp.asarray(expert), weight, E, num_virtual=Z)
  return assignment.kill_padding(edges, jnp.asarray(mask)), mask, rng


@functools.partial(jax.jit, static_argnums=1)
def cap(edges, capacity, priority=None):
  return assignment.cap(edges, capacity, priority)


def loop(edges, capacity, order):
  """(expert, slot) of every edge of one group, by walking the list in `order`."""
  expert, slot, used = list(edges), [capacity] * len(edges), [0] * E
  for n in order:
    if edges[n] < E:
      if used[edges[n]] < capacity:
        slot[n] = used[edges[n]]
      else:
        expert[n] = E + Z
      used[edges[n]] += 1
  return expert, slot


@pytest.mark.parametrize('seed', SEEDS)
def test_list_order_is_priority(seed):
  edges, _, _ = random_edges(seed, skew=0.04 * seed)
  a = cap(edges, 3)
  for g in range(G):
    expert, slot = loop(np.asarray(edges.expert[g]), 3, range(K * S))
    np.testing.assert_array_equal(a.expert[g], expert)
    np.testing.assert_array_equal(a.slot[g], slot)


@pytest.mark.parametrize('seed', SEEDS)
def test_batch_priority_reorders_within_each_choice_and_leaves_the_list(seed):
  edges, _, rng = random_edges(seed, skew=0.5)
  priority = rng.integers(0, 5, size=(G, S)).astype(np.float32)      # with ties
  a = cap(edges, 3, jnp.asarray(priority))
  np.testing.assert_array_equal(a.token, edges.token)
  for g in range(G):
    order = [j * S + s for j in range(K) for s in sorted(range(S), key=lambda s: -priority[g, s])]
    expert, slot = loop(np.asarray(edges.expert[g]), 3, order)
    np.testing.assert_array_equal(a.expert[g], expert)
    np.testing.assert_array_equal(a.slot[g], slot)


@pytest.mark.parametrize('seed', SEEDS)
def test_slots_are_unique_without_holes_and_below_capacity(seed):
  edges, _, _ = random_edges(seed, skew=0.3)
  a = cap(edges, 4)
  for g in range(G):
    for e in range(E):
      slots = sorted(np.asarray(a.slot[g])[np.asarray(a.expert[g]) == e])
      assert slots == list(range(len(slots))) and len(slots) <= 4
  np.testing.assert_array_equal(a.slot < 4, assignment.live(a))


@pytest.mark.parametrize('seed', SEEDS)
def test_padding_never_takes_a_slot(seed):
  edges, mask, _ = random_edges(seed)
  a = cap(edges, 3)
  token, live = np.asarray(a.token), np.asarray(assignment.live(a))
  for g in range(G):
    assert mask[g][token[g][live[g]]].all()


def test_virtual_experts_stay_and_take_no_slot():
  edges = assignment.from_choices(jnp.array([[[2], [0], [2], [3]]]), jnp.ones((1, 4, 1)), 2, num_virtual=1)
  a = assignment.cap(edges, 1)                       # ids 0, 1 experts; 2 virtual; 3 dead
  assert a.expert.tolist() == [[2, 0, 2, 3]]
  assert a.slot.tolist() == [[1, 0, 1, 1]]


@pytest.mark.parametrize('seed', range(5))
def test_masks_are_the_edges_whatever_dead_edges_weigh(seed):
  edges, _, _ = random_edges(seed)
  a = cap(edges, 3)
  a = a.replace(weight=jnp.where(assignment.live(a), a.weight, jnp.nan))
  dispatch, combine = assignment.masks(a)
  want = np.zeros((G, S, E, 3), np.float32)
  for g in range(G):
    for n in range(K * S):
      if a.expert[g, n] < E:
        want[g, a.token[g, n], a.expert[g, n], a.slot[g, n]] += a.weight[g, n]
  np.testing.assert_array_equal(combine, want)
  np.testing.assert_array_equal(dispatch, want != 0)


def test_only_the_weight_carries_gradient():
  probs = jax.nn.softmax(jax.random.normal(jax.random.key(0), (G, S, E)))
  grad = jax.grad(lambda p: assignment.masks(assignment.cap(assignment.from_top_k(p, K), 3))[1].sum())(probs)
  a = assignment.cap(assignment.from_top_k(probs, K), 3)
  want = np.zeros((G, S, E), np.float32)
  for g, n in zip(*np.nonzero(np.asarray(assignment.live(a)))):
    want[g, a.token[g, n], a.expert[g, n]] = 1       # 1 at every probability that became a weight
  np.testing.assert_array_equal(grad, want)


def test_top_k_takes_the_lower_expert_on_ties():
  assert assignment.from_top_k(jnp.ones((1, 1, 4)), 2).expert.tolist() == [[0, 1]]


@pytest.mark.parametrize('tokens, experts, factor, minimum, slots', [
    (512, 8, 1.25, 4, 80), (16, 8, 1.0, 4, 4), (16, 8, 1.0, 1, 2), (2, 8, 1.0, 4, 2), (512, 8, None, 4, 512),
    (20, 8, 1.0, 1, 2),       # 2.5 rounds to even
    (28, 8, 1.0, 1, 4)])      # 3.5 rounds to even
def test_capacity(tokens, experts, factor, minimum, slots):
  assert assignment.capacity(tokens, experts, factor, minimum) == slots


@pytest.mark.parametrize('seed', SEEDS)
def test_rows_are_sorted_by_expert_and_tables_are_inverse(seed):
  edges, _, _ = random_edges(seed, skew=0.02 * seed)
  a = cap(edges, 5)
  r = rows.sort(a)
  expert, live = np.asarray(a.expert).reshape(-1), np.asarray(assignment.live(a)).reshape(-1)
  row, edge = np.asarray(r.row).reshape(-1), np.asarray(r.edge)
  total = live.sum()
  np.testing.assert_array_equal(r.sizes, np.bincount(expert[live], minlength=E)[:E])
  np.testing.assert_array_equal(r.start, np.cumsum(r.sizes) - r.sizes)
  assert (row[~live] == row.size).all()
  np.testing.assert_array_equal(edge[row[live]], np.nonzero(live)[0])
  assert (np.diff(expert[edge[:total]]) >= 0).all()
  want = np.asarray(a.token).reshape(-1)[edge] + edge // (K * S) * S
  np.testing.assert_array_equal(r.token[:total], want[:total])
  assert not np.asarray(r.token[total:]).any()


def test_adding_up_without_choices_is_the_same():
  edges, _, _ = random_edges(0)
  values = jax.random.normal(jax.random.key(0), (G, K * S, 3))
  want = rows.add_up(values, edges.replace(choices=None))
  np.testing.assert_allclose(rows.add_up(values, edges), want, rtol=1e-6)
