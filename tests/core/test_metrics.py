"""Routing metrics in known cases."""

import jax
import jax.numpy as jnp
import numpy as np

from stmoe.core import assignment
from stmoe.core import contract
from stmoe.core import metrics

PROBS = jnp.array([[[0.8, 0.2], [0.6, 0.4], [0.7, 0.3], [0.1, 0.9]]])


def test_load_functions_take_a_stack_of_layers():
  load = jnp.array([[4.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 0.0, 0.0]])
  np.testing.assert_allclose(metrics.load_entropy(load), [0, 1, 0.5], atol=1e-6)
  np.testing.assert_allclose(metrics.max_load_ratio(load), [4, 1, 2])
  np.testing.assert_allclose(metrics.dead_experts(load), [3, 0, 2])


def test_one_expert_or_no_tokens_is_finite():
  for load in (jnp.ones(1), jnp.zeros(4)):
    for f in (metrics.load_entropy, metrics.max_load_ratio, metrics.dead_experts):
      assert jnp.isfinite(f(load))
  assert metrics.max_load_ratio(jnp.ones(1)) == 1


def test_padding_is_neither_wanted_nor_dropped():
  mask = np.array([[True, False, True, True]])
  edges = assignment.kill_padding(assignment.from_top_k(PROBS, 1), mask)
  a = assignment.cap(edges, 1)
  # Of tokens 0, 2 (expert 0) and 3 (expert 1) token 2 is dropped; token 1 is padding.
  assert metrics.load(edges).tolist() == [2, 1]
  np.testing.assert_allclose(metrics.drop_frac(edges, a), 1 / 3, rtol=1e-6)
  np.testing.assert_allclose(metrics.left_behind(a, mask), 1 / 3, rtol=1e-6)
  np.testing.assert_allclose(metrics.confidence(a), (0.8 + 0.9) / 2, rtol=1e-6)
  assert metrics.slot_usage(a) == 1


def test_over_capacity_by_choice_level():
  edges = assignment.from_top_k(PROBS, 2)
  a = assignment.cap(edges, 2)
  # First choices: expert 0 has 2 slots for 3. Second ones: expert 1 has one left for 3, expert 0 none.
  np.testing.assert_allclose([lost.value for lost in metrics.over_capacity(edges, a)], [1 / 4, 3 / 4])


def test_entropy_is_finite_at_certainty_and_skips_padding():
  probs = jnp.array([[[1.0, 0.0], [0.5, 0.5]]])
  np.testing.assert_allclose(metrics.entropy(probs, np.ones((1, 2), bool)), np.log(2) / 2, rtol=1e-6)
  assert metrics.entropy(probs, np.array([[True, False]])) == 0


def test_metrics_carry_no_gradient():
  def total(logits):
    probs = jax.nn.softmax(logits)
    edges = assignment.from_top_k(probs, 1)
    a = assignment.cap(edges, 1)
    return sum(metrics.routing(logits, probs, edges, a, np.ones((1, 4), bool)).values())
  assert not jnp.any(jax.grad(total)(jnp.log(PROBS)))


def test_a_metric_with_a_statistic_of_its_name_is_the_statistic_s_value():
  gap = contract.mean(jnp.array([3.0, 0.0]), jnp.array([4.0, 0.0]))  # the second part is of padding alone
  aux = contract.Aux(losses={}, load=jnp.array([[6.0, 2.0], [0.0, 0.0]]), statistics=dict(gap=gap),
                     metrics=dict(gap=jnp.array([0.75, 0.0])))
  assert metrics.merge(aux).metrics['gap'] == 0.75
  # Of two routers side by side, as of heads: 6 of 11 in all, whatever each of them counted.
  gap = contract.mean(jnp.array([[3.0, 0.0], [1.0, 2.0]]), jnp.array([[4.0, 1.0], [4.0, 2.0]]))
  aux = aux.replace(statistics=dict(gap=gap), metrics=dict(gap=jnp.array([0.6, 0.75])))
  np.testing.assert_allclose(metrics.merge(aux).metrics['gap'], 6 / 11, rtol=1e-6)


def test_merge_takes_maxima_means_and_shares_of_the_load():
  """Confidence is a mean over the choices that found a place: 6 * 0.5 and 2 * 0.9 of them."""
  aux = contract.Aux(losses=dict(balance=jnp.array([1.0, 3.0])), load=jnp.array([[2.0, 4.0], [1.0, 1.0]]),
                     metrics=dict(logit_max=jnp.array([5.0, 7.0]), drop_frac=jnp.array([0.5, 0.1]),
                                  router_conf=jnp.array([0.2, 0.4]), confidence=jnp.array([0.2, 0.4])))
  whole = metrics.merge(aux)
  assert whole.load.tolist() == [3.0, 5.0] and whole.losses['balance'] == 2.0
  np.testing.assert_allclose(
      [whole.metrics[n] for n in ('logit_max', 'drop_frac', 'router_conf', 'confidence')],
      [7.0, (0.5 * 6 + 0.1 * 2) / 8, (0.2 * 3 + 0.4 * 1.8) / 4.8, 0.3], rtol=1e-6)
