"""SparseMixer and GRIN: the gradient against an exact one by enumeration, and the window of contenders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe.errors import UserError
from stmoe.routers import grin
from stmoe.routers import sparsemixer

E = 4
LOGITS = jnp.array([0.9, 1.0, 0.95, 0.92])                           # all within the window of 0.1
OUTPUTS = jax.random.normal(jax.random.key(0), (E, 3))
WANTED = jnp.array([1.0, -1.0, 0.5])


def loss(y):
  return jnp.sum(jnp.square(y - WANTED))


def exact(logits):
  """E over d ~ p of L(p_d f_d), all experts computed."""
  p = jax.nn.softmax(logits)
  return jnp.sum(p * jax.vmap(loss)(p[:, None] * OUTPUTS))


def forced(expert):
  """Draws of Exp(1) that make `expert` win whatever the logits."""
  return jnp.full(E, 1e9).at[expert].set(1e-9)


def expected(value, coins):
  """The mean of the gradients of value(logits, expert, coin) over d ~ p and the coins with their chances."""
  experts, numbers = np.meshgrid(np.arange(E), [coin for coin, _ in coins])
  grads = jax.jit(jax.vmap(jax.grad(value), (None, 0, 0)))(LOGITS, experts.ravel(), numbers.ravel())
  chances = np.outer([chance for _, chance in coins], jax.nn.softmax(LOGITS))
  return chances.ravel() @ grads


def v1(logits, expert, coin):
  a, _ = sparsemixer.sparsemixer(logits[None, None], jnp.ones((1, 1), bool), 1, epsilon=0.1,
                                 draws=(forced(expert)[None, None], jnp.full((1, 1), coin)))
  return loss(a.weight[0, 0] * OUTPUTS[expert])


def v2(logits, expert, coin):
  a, _ = grin.grin(logits[None, None], jnp.ones((1, 1), bool), 1, 1, epsilon=0.1,
                   draws=(forced(expert)[None, None, None], jnp.full((1, 1, 1), coin)))
  return loss(a.weight[0, 0] * OUTPUTS[expert])


def plain(logits, expert, coin):
  del coin
  return loss(jax.nn.softmax(logits)[expert] * OUTPUTS[expert])


def test_the_estimate_is_nearer_to_the_exact_gradient_than_that_of_the_gate():
  wanted = jax.grad(exact)(LOGITS)
  distance = lambda found: float(jnp.linalg.norm(found - wanted) / jnp.linalg.norm(wanted))
  mixer = distance(expected(v1, [(0.2, 0.5), (0.8, 0.5)]))
  assert mixer < 0.5 * distance(expected(plain, [(0.0, 1.0)]))


def test_the_mid_point_rule_is_exact_for_a_square(monkeypatch):
  """Where an argmax is halved as often as others are, nothing but rounding is left of the difference."""
  monkeypatch.setattr(sparsemixer.choices, 'best', lambda rest, uniform=None: jnp.argmax(rest, -1) * 0 + E)
  monkeypatch.setattr(sparsemixer, 'race', lambda kept, q: jnp.argmin(q, axis=-1))
  np.testing.assert_allclose(expected(v1, [(0.2, 0.5), (0.8, 0.5)]), jax.grad(exact)(LOGITS), rtol=1e-4,
                             atol=1e-6)


@pytest.mark.parametrize('value, expert, factor, slope', [
    (v1, 1, 1.0, 2.0), (v1, 0, 0.5, 2.0), (v2, 1, 1.0, 1.0), (v2, 0, grin.THIRD, 1.0)])
def test_a_losing_coin_scales_the_gate_and_not_its_gradient(value, expert, factor, slope):
  p = jax.nn.softmax(LOGITS)
  gate = factor * p[expert]
  found, grad = jax.jit(jax.value_and_grad(value))(LOGITS, expert, 0.2)
  np.testing.assert_allclose(found, loss(gate * OUTPUTS[expert]), rtol=1e-5)
  of_gate = jax.grad(lambda g: loss(g * OUTPUTS[expert]))(gate)
  of_softmax = p[expert] * (jnp.eye(E)[expert] - p)
  np.testing.assert_allclose(grad, slope * of_gate * of_softmax, rtol=1e-4, atol=1e-6)


def test_contenders_are_those_that_jitter_could_make_win():
  kept = lambda logits, epsilon=0.1: (sparsemixer.contenders(logits, logits, epsilon) > -jnp.inf).tolist()
  assert kept(jnp.array([1.0, 0.81, 0.79, -1.0])) == [True, True, False, False]
  assert kept(-jnp.array([1.0, 1.24, 1.26, 9.0])) == [True, True, False, False]    # relative to |s_e|
  assert kept(jnp.zeros(2)) == [True, True] and kept(jnp.array([1.0, 0.999]), 0.0) == [True, False]


def test_gates_of_two_choices_are_not_shares():
  logits = jnp.array([[[3.0, 1.0, 0.0, -1.0]]])
  a, aux = jax.jit(lambda s: grin.grin(s, jnp.ones((1, 1), bool), 1, 2, epsilon=0.01))(logits)
  assert a.expert.tolist() == [[0, 1]] and a.weight.tolist() == [[1.0, 1.0]]
  assert aux.metrics['contenders'] == 1


@pytest.mark.parametrize('route', [
    lambda s, **fields: sparsemixer.sparsemixer(s, jnp.ones((1, 3), bool), 3, epsilon=0.5, **fields),
    lambda s, **fields: grin.grin(s, jnp.ones((1, 3), bool), 3, 2, epsilon=0.5, **fields)])
def test_given_choices_have_the_gates_that_chosen_ones_have(route):
  logits = jax.random.normal(jax.random.key(1), (1, 3, E))
  own, _ = jax.jit(route)(logits)
  k = own.choices
  given = lambda scores, number: own.expert.reshape(1, k, 3).swapaxes(1, 2)
  again, _ = jax.jit(lambda s: route(s, choose=given))(logits)
  np.testing.assert_array_equal(again.expert, own.expert)
  np.testing.assert_allclose(again.weight, own.weight, rtol=1e-6)


def test_mistakes_are_named():
  with pytest.raises(UserError, match='k=5 with num_experts=4; k is at least 1 and at most 4'):
    grin.Grin(8, num_experts=E, k=5, rngs=None)
