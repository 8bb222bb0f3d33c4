"""Grades per byte, and what systems score that never read a question, by hand and by drawing them."""

import itertools
import pathlib

import numpy as np
import pytest

from stmoe.data.text import big_bench
from stmoe.metrics import big_bench as metrics

DATA = pathlib.Path(__file__).resolve().parent.parent / 'data' / 'bigbench'
DRAWS = 4000


def ranked(scores, choices, log_probs=None):
  return metrics.Ranked.of(log_probs or [np.zeros(len(each)) for each in choices], scores, choices)


def graded(order, scores, choices):
  """The grade of a system that likes texts in this order, best first."""
  return np.mean([values[min(range(len(each)), key=lambda i: order[each[i]])]
                  for values, each in zip(scores, choices)])


# Shared texts, the same choices again with other scores, one question alone, scores between 0 and 1.
CHOICES = [['a', 'b', 'c'], ['b', 'c', 'd'], ['c', 'b', 'a'], ['d', 'e'], ['f', 'a'], ['f', 'a']]
SCORES = [[1, 0, 0], [0, 1, 0.5], [0, 0, 1], [1, 0], [0.25, 1], [1, 0]]


@pytest.mark.parametrize('rows', [1, 256])
def test_the_spread_is_that_over_all_orders(monkeypatch, rows):
  monkeypatch.setattr(metrics, 'ROWS', rows)
  orders = [dict(zip(order, range(6))) for order in itertools.permutations('abcdef')]
  grades = [graded(order, SCORES, CHOICES) for order in orders]
  assert ranked(SCORES, CHOICES).chance() == pytest.approx((np.mean(grades), np.std(grades)), abs=1e-12)


def test_without_shared_texts_it_is_guessing_and_with_one_question_for_all_a_single_draw():
  apart = [[f'{i} {j}' for j in range(4)] for i in range(8)]
  right = [[0, 1, 0, 0]] * 8
  assert ranked(right, apart).chance() == pytest.approx((0.25, np.sqrt(0.25 * 0.75 / 8)))
  # 'yes' is right 5 times of 8: an order gives 5/8 or 3/8, each half of the time.
  assert ranked([[1, 0]] * 5 + [[0, 1]] * 3, [['yes', 'no']] * 8).chance() == pytest.approx((0.5, 1 / 8))


@pytest.mark.parametrize('name', ['known_unknowns', 'code_line_description',
                                  'simple_arithmetic_json_multiple_choice'])
def test_the_spread_is_that_of_drawn_orders_on_tasks(name):
  [task] = big_bench.read(DATA / f'{name}.json')
  choices = [[*example.choices] for example in task.examples]
  scores = [[*example.choices.values()] for example in task.examples]
  texts, rng = sorted({text for each in choices for text in each}), np.random.default_rng(0)
  grades = [graded(dict(zip(texts, rng.random(len(texts)))), scores, choices) for _ in range(DRAWS)]
  mean, spread = ranked(scores, choices).chance()
  assert abs(np.mean(grades) - mean) < 4 * spread / np.sqrt(DRAWS)
  variances = (np.array(grades) - mean) ** 2                         # their mean is the square of the spread
  assert abs(np.mean(variances) - spread ** 2) < 4 * np.std(variances) / np.sqrt(DRAWS)


def test_per_byte_divides_by_bytes_of_utf_8():
  scores, choices = [[0, 1], [0, 1], [1, 0]], [['no', 'always'], ['aa', 'é'], ['', 'ab']]
  found = ranked(scores, choices, [[-4.0, -6.0], [-4.0, -3.0], [-1.0, -4.0]])
  # -2 against -1 a byte; -2 against -1.5, as é has two; an empty choice counts as one byte: -1 against -2.
  assert metrics.multiple_choice_grade_per_byte(found).tolist() == [1, 1, 1]
  assert metrics.multiple_choice_grade(found).tolist() == [0, 1, 1]
  assert metrics.RANKED[metrics.PER_BYTE] is metrics.multiple_choice_grade_per_byte


def test_equal_choices_per_byte_do_not_go_to_the_first():
  rng = np.random.default_rng(0)
  sure = [-rng.random() * np.array([1.0, 2.0, 4.0]) for _ in range(60)]
  found = ranked([[1, 0, 0]] * 60, [['a', 'bb', 'cccc']] * 60, sure)
  assert 0 < metrics.multiple_choice_grade_per_byte(found).mean() < 0.6
  assert metrics.multiple_choice_grade(found).mean() == 1


def test_shortest_draws_among_the_choices_of_fewest_bytes():
  # One choice is shortest and wrong; two are and share a point; é has two bytes, as ab.
  found = ranked([[0, 1], [1, 0, 0], [0, 1]], [['a', 'bb'], ['x', 'y', 'zzz'], ['é', 'ab']])
  assert found.shortest() == pytest.approx((1 / 3, np.sqrt(0 + 0.25 + 0.25) / 3))
