"""Balanced assignments are valid whatever the scores, near the optimum, and the same every time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from stmoe.core import matching

auction, greedy, sinkhorn = matching.auction, matching.greedy_balanced, matching.sinkhorn
G, S, E = 4, 24, 4                                                   # shared by the tests: few compilations
METHODS = pytest.mark.parametrize('method', [auction, greedy], ids=['auction', 'greedy_balanced'])


def scores_of(kind, seed=0):
  """f32[G,S,E] scores; the kinds are what broke, or would break, a naive auction."""
  rng = np.random.default_rng(seed)
  normal = rng.normal(size=(G, S, E))
  made = {
      'normal': lambda: normal,
      'constant': lambda: np.full((G, S, E), 1e3),
      'integers': lambda: rng.integers(0, 3, size=(G, S, E)),
      'equal rows': lambda: np.broadcast_to(normal[:, :1], normal.shape),
      'four rows': lambda: normal[:, rng.integers(0, 4, size=S)],
      'one favourite': lambda: normal + 20 * (np.arange(E) == 2),
      'rows of -inf': lambda: np.where(rng.random((G, S, 1)) < 0.3, -np.inf, normal),
      'all -inf': lambda: np.full((G, S, E), -np.inf),
      'nan': lambda: np.where(rng.random((G, S, E)) < 0.3, np.nan, normal),
      'huge': lambda: np.clip(normal, -3, 3) * 1e38,
      'tiny': lambda: normal * 1e-30,
      'heavy tails': lambda: rng.standard_cauchy(size=(G, S, E)) ** 3,
      'far from zero': lambda: normal + 1e4,
  }
  return np.asarray(made[kind](), np.float32)


KINDS = ['normal', 'constant', 'integers', 'equal rows', 'four rows', 'one favourite', 'rows of -inf',
         'all -inf', 'nan', 'huge', 'tiny', 'heavy tails', 'far from zero']


def assert_balanced(chosen, experts=E):
  for row in np.asarray(chosen):
    np.testing.assert_array_equal(np.bincount(row, minlength=experts), len(row) // experts)


def total(scores, chosen):
  return np.take_along_axis(scores.astype(np.float64), np.asarray(chosen)[..., None], axis=2).sum(axis=(1, 2))


def optimum(scores):
  """The largest balanced total of each group, from scipy."""
  totals = []
  for one in scores.astype(np.float64):
    share = one.shape[0] // one.shape[1]
    row, column = optimize.linear_sum_assignment(-np.repeat(one, share, axis=1))
    totals.append(one[row, column // share].sum())
  return np.array(totals)


@METHODS
@pytest.mark.parametrize('kind', KINDS)
def test_always_balanced_and_repeatable(method, kind):
  for seed in range(3):
    scores = scores_of(kind, seed)
    chosen = method(scores)
    assert_balanced(chosen)
    np.testing.assert_array_equal(chosen, method(scores))


@pytest.mark.parametrize('kind', ['normal', 'integers', 'equal rows', 'four rows', 'one favourite',
                                  'heavy tails'])
def test_auction_is_near_the_optimum(kind):
  for seed in range(10):
    scores = scores_of(kind, seed)
    best, found = optimum(scores), total(scores, auction(scores))
    scale = S * np.ptp(scores.astype(np.float64), axis=(1, 2))
    # The stated bound, and the ties that were broken; an auction alone may be a fiftieth off.
    assert np.all(found >= best - scale * (matching.LEAST_GAIN + 2 * matching.TIE_BREAK))
    assert np.all(found <= best + 1e-6 * scale)


def test_one_place_each():
  scores = np.asarray(np.random.default_rng(0).normal(size=(2, 8, 8)), np.float32)
  chosen = auction(scores)
  assert_balanced(chosen, 8)
  assert np.all(total(scores, chosen) >= optimum(scores) - 8 * np.ptp(scores) / 500)


def test_one_expert():
  assert auction(np.zeros((2, 6, 1), np.float32)).tolist() == [[0] * 6] * 2


def test_cycles_of_three_are_found():
  # From expert e to e + 1 a token gains 0.4, from e + 1 to e it loses 1: no pair can gain.
  gain = np.full((4, 4), -9.0, np.float32)
  for a, b in ((0, 1), (1, 2), (2, 0)):
    gain[a, b], gain[b, a] = 0.4, -1.0
  cycle = jax.jit(matching._cycle)
  assert matching._pairs(jnp.asarray(gain)).tolist() == [0, 1, 2, 3]
  assert cycle(gain).tolist() == [2, 0, 1, 3]                        # expert 1 gets its token from expert 0
  assert cycle(gain - 0.4).tolist() == [0, 1, 2, 3]                  # a cycle that gains nothing


def test_greedy_by_hand():
  scores = np.array([[[2.0, 1.9], [2.1, 0.0], [5.0, 9.0], [0.3, 0.0]]], np.float32)
  assert greedy(scores).tolist() == [[1, 0, 0, 1]]                   # expert 0 takes tokens 2 and 1
  assert greedy(scores, order=jnp.array([[1, 0]])).tolist() == [[1, 0, 1, 0]]    # expert 1: tokens 2 and 0


def test_auction_beats_greedy_in_the_mean():
  gap = lambda method: np.mean([total(scores_of('normal', seed), method(scores_of('normal', seed)))
                                for seed in range(8)])
  assert gap(auction) > 1.02 * gap(greedy)


def test_scale_and_shift_do_not_count():
  scores = scores_of('normal')
  np.testing.assert_array_equal(auction(scores), auction(8 * scores + 64))


@METHODS
def test_padding_takes_what_real_tokens_leave(method):
  mask = np.arange(S) >= np.array([[0], [5], [20], [S]])             # padding first; the last is all padding
  scores = scores_of('normal')
  chosen = np.asarray(method(scores, mask))
  assert_balanced(chosen)
  other = np.where(mask[..., None], scores, np.nan)
  np.testing.assert_array_equal(chosen, method(other, mask))
  if method is auction:                                              # four tokens, six places at each expert
    np.testing.assert_array_equal(chosen[2, 20:], scores[2, 20:].argmax(axis=1))


@pytest.mark.parametrize('method', [auction, greedy, sinkhorn], ids=['auction', 'greedy', 'sinkhorn'])
def test_a_second_call_compiles_nothing(method):
  scores = scores_of('normal')
  method(scores)
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
      lambda event, seconds, **_: compiled.append(event) if 'backend_compile' in event else None)
  method(scores)
  assert not compiled


def test_groups_do_not_see_each_other():
  scores = np.concatenate([scores_of('normal')[:2], scores_of('four rows')[:2]])
  apart = np.concatenate([auction(np.broadcast_to(scores[g], scores.shape))[:1] for g in range(G)])
  np.testing.assert_array_equal(auction(scores), apart)


def test_sinkhorn_plan_is_doubly_stochastic():
  logits = scores_of('one favourite') / 4
  plan = np.asarray(sinkhorn(logits, tolerance=1e-6))
  np.testing.assert_allclose(plan.sum(axis=1), 1 / E, rtol=1e-5)
  np.testing.assert_allclose(plan.sum(axis=2), 1 / S, rtol=1e-3)
  # Of the form diag(u) exp(logits) diag(v): the interaction of rows and columns is that of the logits.
  centred = lambda a: a - a.mean(axis=1, keepdims=True)
  interaction = lambda a: centred(centred(a).swapaxes(1, 2))
  np.testing.assert_allclose(interaction(np.log(plan)), interaction(logits), atol=1e-4)


def test_sinkhorn_stops_because_it_converged():
  logits = 3 * scores_of('normal')                                   # converges slowly
  rows = lambda **limits: float(np.abs(np.asarray(sinkhorn(logits, **limits)).sum(axis=2) * S - 1).max())
  errors = [rows(tolerance=t) for t in (1e3, 1e-2, 1e-6)]
  assert errors == sorted(errors, reverse=True) and errors[0] > 0.1 and errors[-1] < 1e-4
  # It converges, rather than running into the limit, which cuts it short.
  assert rows(tolerance=1e-6, iterations=10 ** 6) == errors[-1]
  assert rows(tolerance=1e-6, iterations=1) == errors[0]


def test_sinkhorn_survives_large_logits_and_padding():
  plan = np.asarray(sinkhorn(scores_of('normal') + 1e3 * np.arange(S)[:, None]))   # exp overflows at 88
  assert np.isfinite(plan).all()
  mask = np.arange(S) < np.array([[S], [7], [1], [0]])
  plan = np.asarray(sinkhorn(np.where(mask[..., None], scores_of('normal'), np.nan), mask))
  assert np.isfinite(plan).all() and not plan[~mask].any()
  np.testing.assert_allclose(plan[:3].sum(axis=1), 1 / E, rtol=1e-5)
  np.testing.assert_allclose(plan[1, :7].sum(axis=1), 1 / 7, rtol=1e-2)
  alone = sinkhorn(np.broadcast_to(scores_of('normal')[1, :7], (G, 7, E)))
  np.testing.assert_allclose(plan[1, :7], alone[0], rtol=1e-5)
