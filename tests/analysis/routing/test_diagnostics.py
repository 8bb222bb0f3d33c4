"""Numbers of recorded choices, by hand: four tokens, three experts, one token that no expert took."""

import math

import numpy as np
import pytest

from stmoe.analysis.routing import diagnostics

# Token 0: experts 0 and 1; token 1: expert 2 alone; token 2: 1 and 0; token 3: none.
MINE = diagnostics.Routes(np.array([[0, 1], [2, -1], [1, 0], [-1, -1]]),
                          np.array([[0.6, 0.2], [0.5, 0], [0.5, 0.5], [0, 0]]), 4)
THEIRS = diagnostics.Routes(np.array([[1, 0], [2, 1], [1, 3], [-1, -1]]),
                            np.array([[0.6, 0.2], [0.5, 0.1], [0.5, 0.5], [0, 0]]), 4)


def test_edges_become_routes_of_real_tokens():
  # Two groups of three tokens are the rows of a batch [2,3]; expert 2 = E is a dead edge.
  token = np.array([[0, 1, 2, 0], [0, 1, 1, 2]])
  expert = np.array([[1, 0, 2, 0], [1, 1, 0, 0]])
  weight = np.array([[0.3, 0.9, 0.8, 0.7], [0.5, 0.2, 0.6, 0.4]])
  mask = np.array([[True, True, True], [True, True, False]])
  found = diagnostics.routes(token, expert, weight, np.arange(6).reshape(2, 3), mask, num_experts=2)
  assert found.experts.tolist() == [[0, 1], [0, -1], [-1, -1], [1, -1], [0, 1]]
  assert found.weights.tolist() == [[0.7, 0.3], [0.9, 0], [0, 0], [0.5, 0], [0.6, 0.2]]


def test_places_are_those_of_rows():
  """The last row is short: its second place does not count. No row has a third."""
  real = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 0]], bool)
  np.testing.assert_array_equal(diagnostics.by_place(MINE, real), [4 / 3, 1, math.nan])


def test_the_sign_of_a_weight_does_not_count():
  """TC-MoE's experts of factor -1: token 1 has expert 1 first, and entropies are of lengths."""
  token, expert = np.array([[0, 1, 0, 1]]), np.array([[0, 0, 1, 1]])
  signed = np.array([[0.6, 0.3, -0.4, -0.7]])
  found = diagnostics.routes(token, expert, signed, np.arange(2)[None], np.ones((1, 2), bool), num_experts=2)
  assert found.experts.tolist() == [[0, 1], [1, 0]] and found.weights.tolist() == [[0.6, 0.4], [0.7, 0.3]]
  assert diagnostics.allocation_entropy(found) == 1 and diagnostics.margin(found) == pytest.approx(0.3)
  entropy = lambda p: -(p * math.log(p) + (1 - p) * math.log(1 - p)) / math.log(2)
  assert diagnostics.weight_entropy(found) == pytest.approx((entropy(0.6) + entropy(0.7)) / 2)


def test_of_one_layer():
  np.testing.assert_allclose(diagnostics.load(MINE), [0.4, 0.4, 0.2, 0])
  assert diagnostics.allocation_entropy(MINE) == pytest.approx(math.log(3) / math.log(4))
  entropy = -2 * 0.4 * math.log(0.4) - 0.2 * math.log(0.2)
  assert diagnostics.usage_perplexity(MINE) == pytest.approx(math.exp(entropy) / 4)
  assert diagnostics.dead(MINE) == 0.25 and diagnostics.without(MINE) == 0.25
  uneven = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
  assert diagnostics.weight_entropy(MINE) == pytest.approx((uneven + 1) / 2)     # of tokens 0 and 2
  assert diagnostics.margin(MINE) == pytest.approx((0.5 + 0) / 2)
  np.testing.assert_allclose(diagnostics.coactivation(MINE),
                             [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
  assert diagnostics.strongest(diagnostics.coactivation(MINE)) == [(0, 1, 1.0), (1, 0, 1.0)]


def test_of_two_checkpoints():
  assert diagnostics.overlap(MINE, THEIRS) == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
  assert diagnostics.overlap(MINE, MINE) == 1.0
  assert diagnostics.first_agreement(MINE, THEIRS) == pytest.approx(2 / 3)
  assert diagnostics.slot_change(MINE, THEIRS) == pytest.approx(4 / 6)   # a swap is two changes


def test_of_layers():
  least = sum(np.minimum(diagnostics.load(MINE), diagnostics.load(THEIRS)))
  assert diagnostics.universality([MINE, THEIRS]) == pytest.approx((1 + 1 + 2 * least) / 4)
  assert math.isnan(diagnostics.universality([MINE, diagnostics.Routes(MINE.experts, MINE.weights, 5)]))


def test_parts_of_other_widths_are_joined():
  one = diagnostics.Routes(np.array([[3]]), np.array([[1.0]]), 4)
  both = diagnostics.joined([one, MINE])
  assert both.experts[:2].tolist() == [[3, -1], [0, 1]] and both.weights[0].tolist() == [1.0, 0.0]
  assert both.of(np.array([0])).experts.tolist() == [[3, -1]]


def test_single_choices_have_no_margin():
  alone = diagnostics.Routes(np.array([[1], [0]]), np.ones((2, 1)), 2)
  assert math.isnan(diagnostics.margin(alone)) and math.isnan(diagnostics.weight_entropy(alone))
