"""Top-p routing by numbers worked by hand: who is active, the most there can be, losses."""

import functools

from flax import nnx
import jax
import numpy as np
import pytest

from stmoe import errors
from stmoe import experiment
from stmoe import lookup
from stmoe import sections
from stmoe.routers import top_p_routing

# In doubt, sure, exactly at p; the last token is padding.
PROBS = np.array([[0.25, 0.25, 0.25, 0.25], [0.0625, 0.0625, 0.75, 0.125], [0.5, 0.25, 0.125, 0.125],
                  [0.25, 0.25, 0.25, 0.25]], np.float32)
MASK = np.array([[True, True, True, False]])
route = functools.partial(jax.jit(top_p_routing.top_p_routing, static_argnums=3, static_argnames='expected'),
                          np.log(PROBS)[None], MASK)


def active(a):
  """bool[S,E] of the one group, whose weights are the probabilities themselves."""
  dense = np.zeros((4, 5))
  dense[a.token[0], a.expert[0]] = a.weight[0]
  found = dense[:, :4] > 0
  np.testing.assert_allclose(dense[:, :4], np.where(found, PROBS, 0), rtol=1e-6)
  return found


def test_the_first_sum_above_p_ends_the_list():
  # 0.5 is not above 0.5: flat has a third expert, and so has the token whose first is 0.5 a second.
  a, aux = route(0.5, 4)
  found = active(a)
  assert found.sum(1).tolist() == [3, 1, 2, 0] and found[1].tolist() == [False, False, True, False]
  np.testing.assert_allclose(aux.metrics['active_experts'], 2.0)
  np.testing.assert_allclose(aux.losses['balance'], 4 * found[:3].mean(0) @ PROBS[:3].mean(0), rtol=1e-6)
  entropies = -np.sum(PROBS * np.log(PROBS), axis=1)[:3]
  np.testing.assert_allclose(aux.losses['entropy'], entropies.mean(), rtol=1e-6)


def test_all_are_active_where_no_sum_is_above_p_and_a_cap_cuts():
  assert [active(route(p, 4)[0]).sum(1).tolist() for p in (1.0, 1.5)] == 2 * [[4, 4, 4, 0]]
  a = route(0.5, 2, expected=1.5)[0]
  assert active(a).sum(1).tolist() == [2, 1, 2, 0]
  assert a.rows_per_group == 4 * 1.5 and a.replace(spare=0).rows_per_group == 4 * 2


@pytest.mark.parametrize('p', [0.1, 0.3, 0.4, 0.5, 0.9, 1.0])
def test_no_token_needs_more_than_a_flat_router(p):
  for num_experts in (4, 10, 16):
    logits = np.random.default_rng(0).normal(size=(50, num_experts)) * np.linspace(0, 3, 50)[:, None]
    probs = np.sort(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[:, ::-1]
    needed = 1 + (np.cumsum(probs, axis=1)[:, :-1] <= p + 1e-6).sum(1)
    assert top_p_routing.most_experts(p, num_experts) == needed.max() == needed[0]


def test_cost_is_counted_by_what_can_be_expected():
  def build(**fields):
    return lookup.recipe('router', dict(name='top_p_routing', num_experts=8) | fields)(4, rngs=nnx.Rngs(0))
  assert build().k == 4 and build(max_experts=2).k == 2 and build(p=1.0).k == 8
  with pytest.raises(errors.UserError, match='expected=5.0 experts of a token, .* nearest: 4'):
    build(expected=5.0)


@pytest.mark.parametrize('p', [0.0, -0.1, 1.5])
def test_a_p_outside_of_its_range_is_one_line(p):
  cfg = experiment.load('top_p_routing/sizes')[0]
  cfg.blocks.m.router.p = p
  with pytest.raises(errors.UserError, match=f'router.p={p}: expected a number above 0, at most 1'):
    sections.check(cfg, whole=False)
