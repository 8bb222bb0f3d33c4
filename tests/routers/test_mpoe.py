"""MPOE's router by numbers worked by hand; its contract is that of every router."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe.core import assignment
from stmoe.routers import mpoe

# Three tokens want expert 0 with probability 3/4, one token expert 1.
LOGITS = jnp.log(jnp.array([[[0.75, 0.25], [0.75, 0.25], [0.75, 0.25], [0.25, 0.75]]]))
MASK = jnp.ones((1, 4), bool)


def test_gates_are_one_and_carry_the_gradient_of_the_logarithm():
  weights = lambda logits, scale_prob=False: mpoe.mpoe(logits, MASK, 4, scale_prob=scale_prob)[0].weight
  assert (weights(LOGITS) == 1).all()
  np.testing.assert_allclose(weights(LOGITS, True), 0.75, rtol=1e-6)
  grad = jax.grad(lambda logits: weights(logits)[0, 0])(LOGITS)
  np.testing.assert_allclose(grad[0, 0], [0.25, -0.25], rtol=1e-5)   # d log p


def test_who_is_dropped_passes_through_a_virtual_expert():
  fields = dict(priority=jnp.array([[0.1, 0.9, 0.5, 0.2]]))
  a, aux = mpoe.mpoe(LOGITS, MASK, 2, num_virtual=1, pass_dropped=True, **fields)
  assert a.expert.tolist() == [[2, 0, 0, 1]] and a.num_experts == 2
  assert aux.load.tolist() == [3, 1, 0] and aux.metrics['left_behind'] == 0
  a, aux = mpoe.mpoe(LOGITS, MASK, 2, **fields)
  assert assignment.live(a).tolist() == [[False, True, True, True]] and aux.metrics['left_behind'] == 0.25


def test_nothing_virtual_for_dropped_tokens_is_one_line():
  with pytest.raises(errors.UserError, match=r"pass_dropped=True, but .* nearest: virtual=\('copy',\)"):
    lookup.recipe('router', dict(name='mpoe', num_experts=2, pass_dropped=True))(4, rngs=nnx.Rngs(0))
