"""How tokens choose: ties, saturation, sampling and policies."""

import jax
import jax.numpy as jnp
import numpy as np

from stmoe.core import choices


def test_choose_is_top_k_with_ties_to_the_lower_expert():
  probs = jax.nn.softmax(jnp.round(jax.random.normal(jax.random.key(0), (3, 20, 6))))   # many ties
  np.testing.assert_array_equal(choices.choose(probs, 3), jax.lax.top_k(probs, 3)[1])


def test_values_have_the_gradient_of_a_gather():
  probs = jax.nn.softmax(jax.random.normal(jax.random.key(0), (2, 5, 4)))
  choice = choices.choose(probs, 2)
  ours = lambda p: jnp.sum(jnp.sin(choices.values(p, choice)))
  theirs = lambda p: jnp.sum(jnp.sin(jnp.take_along_axis(p, choice, axis=-1)))
  np.testing.assert_allclose(ours(probs), theirs(probs), rtol=1e-6)
  np.testing.assert_allclose(jax.grad(ours)(probs), jax.grad(theirs)(probs), rtol=1e-6)


def test_sampling_draws_in_proportion_and_never_outside():
  rest = jnp.broadcast_to(jnp.array([0.0, 0.2, -1.0, 0.6, 0.0]), (1, 800, 5))
  uniform = jnp.arange(800)[None] / 800
  drawn = choices.sample(rest, uniform)
  assert np.bincount(drawn[0], minlength=5).tolist() == [0, 200, 0, 600, 0]
  # The largest float below 1, and a row in which nothing is left to draw.
  assert choices.sample(rest[:, :1], jnp.full((1, 1), 1 - 2 ** -24)).tolist() == [[3]]
  assert choices.sample(jnp.array([[[0.0, -1.0, 0.0]]]), jnp.array([[0.3]])).tolist() == [[0]]


def test_policies():
  gates = jnp.array([[[0.6, 0.3], [0.9, 0.1]]])

  def kept(policy, uniform=None, threshold=0.2):
    return choices.keep(policy, gates, uniform, threshold)[0, :, 1].tolist()
  assert kept('all') == [True, True] and kept('none') == [False, False]
  assert kept('threshold') == [True, False]
  assert kept('random', jnp.full((1, 2, 1), 0.45)) == [True, True]
  assert kept('random', jnp.full((1, 2, 1), 0.55)) == [True, False]
  assert kept('random', threshold=0.4) == [True, False]              # no draw: gate above threshold / 2


def test_a_saturated_softmax_still_gives_distinct_experts():
  assert choices.choose(jnp.array([[[1.0, 0.0, 0.0]]]), 3).tolist() == [[[0, 1, 2]]]


def test_a_gate_at_the_threshold_is_not_above_it():
  gates = jnp.array([[[0.5, 0.25], [0.5, 0.375]]])
  assert choices.keep('threshold', gates, None, 0.25).tolist() == [[[True, False], [True, True]]]
