"""Maps of Assignments and of kinds of tokens: what is drawn is what was routed."""

import jax.numpy as jnp
import numpy as np
import pytest

from stmoe.analysis import canvas
from stmoe.analysis.routing import assignment_map
from stmoe.analysis.routing import text as routing_view
from stmoe.analysis.routing import token_kinds
from stmoe.core import assignment

# Four tokens: three want expert 0, of two slots; the last wants expert 1.
PROBS = jnp.array([[[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6]]])


@pytest.fixture
def edges():
  return assignment.from_top_k(PROBS, 1)


def test_edges_are_split_into_executed_and_dropped(edges):
  a = assignment.cap(edges, 2)
  token, expert, weight, slot = assignment_map.edges(a)
  assert (token.tolist(), expert.tolist(), slot.tolist()) == ([0, 1, 3], [0, 0, 1], [0, 1, 0])
  np.testing.assert_allclose(weight, [0.9, 0.8, 0.6])
  assert [found.tolist() for found in assignment_map.dropped(a, edges)] == [[2], [0]]


def test_the_map_says_and_shows_what_was_dropped(edges):
  a = assignment.cap(edges, 2)
  made = assignment_map.figure(dict(first=a, all=assignment.cap(edges, 4)), dict(first=edges),
                               kinds=['x', 'x', 'y', 'y'])
  first, everything = made.axes
  assert first.get_title(loc='left') == 'first: capacity 2, 1 token without expert'
  assert everything.get_title(loc='left') == 'all: every token has an expert'
  crosses = [line for line in first.lines if line.get_marker() == 'x']
  assert [line.get_xydata().tolist() for line in crosses] == [[[2, 0]]]
  assert not [line for line in everything.lines if line.get_marker() == 'x']
  assert [text.get_text() for text in first.get_xticklabels()] == ['x', 'y']
  assert canvas.encode(made, 'png').startswith(b'\x89PNG')


def sample(pieces, taken):
  return routing_view.Sample(pieces=pieces, taken=[[(e, 1.0)] for e in taken], num_experts=2, table=[])


def test_kinds_that_experts_divide_among_them_are_one_bit():
  split = sample(['if', 'def', '(', ')'], [0, 0, 1, 1])
  mixed = sample(['if', 'def', '(', ')'], [0, 1, 0, 1])
  assert token_kinds.information(token_kinds.counts(split)) == pytest.approx(1.0)
  assert token_kinds.information(token_kinds.counts(mixed)) == pytest.approx(0.0)
  made = token_kinds.figure(dict(decoder_01=split, decoder_03=mixed))
  written = [[text.get_text() for text in ax.texts] for ax in made.axes]
  assert written == [['100', '100'], ['50', '50', '50', '50']]
  assert [text.get_text() for text in made.axes[0].get_yticklabels()] == ['keyword', 'bracket']


def test_dropped_tokens_count_for_no_expert():
  seen = routing_view.Sample(pieces=['if', 'x'], taken=[[], [(1, 0.5), (0, 0.2)]], num_experts=2, table=[])
  assert token_kinds.counts(seen).sum() == 2
