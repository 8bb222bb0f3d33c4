"""Verdicts on claims: the intervals are those of a statistics library, the rule is the one that is stated."""

import math

import numpy as np
import pytest
from scipy import stats

from stmoe import errors
from stmoe.analysis import verdict


def test_same_seeds_are_paired():
  # Differences -1, -2, -3: mean -2, deviation 1; t of two degrees of freedom at 97.5 % is 4.3027.
  told = verdict.exceeds('c', {0: 1.0, 1: 2.0, 2: 3.0}, {0: 2.0, 2: 6.0, 1: 4.0})
  assert (told.effect, told.spread, told.seeds) == (2.0, 1.0, (3, 3)) and told.rule == 'paired t'
  half = 4.3027 / math.sqrt(3)
  np.testing.assert_allclose([told.low, told.high], [2 - half, 2 + half], rtol=1e-4)
  assert told.answer == verdict.OPEN


@pytest.mark.parametrize('a, b', [([1.0, 2.0, 3.0], [4.0, 6.0]), ({0: 1.0, 1: 1.5}, {2: 2.0, 3: 2.1})])
def test_other_seeds_are_compared_by_welch(a, b):
  told = verdict.exceeds('c', a, b, better='higher')
  x, y = (list(g.values()) if isinstance(g, dict) else g for g in (a, b))
  want = stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
  np.testing.assert_allclose([told.low, told.high], [want.low, want.high], rtol=1e-9)
  assert told.rule == "Welch's t"


CLOSE = dict(zip(range(3), (1.0, 1.001, 1.002)))


def shifted(amount, noise=0.001):
  return {seed: value + amount + noise * (seed - 1) for seed, value in CLOSE.items()}


@pytest.mark.parametrize('amount, size, answer', [
    (-0.1, 0.0, verdict.HOLDS), (-0.1, 0.1, verdict.HOLDS), (-0.1, 0.2, verdict.FAILS),
    (0.1, 0.0, verdict.FAILS), (0.0005, 0.0, verdict.OPEN), (0.0005, 0.1, verdict.FAILS),
    (-0.0005, 0.002, verdict.OPEN)])
def test_answers(amount, size, answer):
  assert verdict.exceeds('c', shifted(amount), CLOSE, size).answer == answer
  flipped = verdict.exceeds('c', {s: -v for s, v in shifted(amount).items()},
                            {s: -v for s, v in CLOSE.items()}, size, better='higher')
  assert flipped.answer == answer


@pytest.mark.parametrize('amount, answer', [
    (0.0, verdict.HOLDS), (0.009, verdict.OPEN), (-0.1, verdict.FAILS), (0.1, verdict.FAILS)])
def test_alike(amount, answer):
  assert verdict.alike('c', shifted(amount), CLOSE, margin=0.01).answer == answer


@pytest.mark.parametrize('a, rule', [({0: 1.0}, 'needs two seeds'), ({}, 'no runs yet'),
                                     ({0: 1.0, 1: None, 2: math.inf}, '2 run(s) without a finite value')])
def test_too_little_decides_nothing(a, rule):
  alike = verdict.alike('c', a, CLOSE, 9.0)
  for told in (verdict.exceeds('c', a, CLOSE), verdict.exceeds('c', CLOSE, a), alike):
    assert told.answer == verdict.OPEN and rule in told.rule and rule in str(told)


def test_mistakes():
  for fields in (dict(size=-1.0), dict(better='more')):
    with pytest.raises(errors.UserError, match='verdict: '):
      verdict.exceeds('c', CLOSE, CLOSE, **fields)
