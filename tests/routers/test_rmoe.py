"""The recurrent router by numbers worked by hand, its ablations, and its loss over all layers."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import lookup
from stmoe import modules
from stmoe.core import balance
from stmoe.core import contract
from stmoe.core import losses
from stmoe.core.units import recurrent
from stmoe.errors import UserError

MASK = jnp.array([[True, True, True, False]])
CTX = contract.Context(**contract.numbered(MASK), step=0, tokens=jnp.float32(3))
X = jax.random.normal(jax.random.key(0), (1, 4, 8))


def build(**fields):
  recipe = lookup.recipe('router', dict(dict(name='rmoe', num_experts=4, width=3), **fields))
  return recipe(8, rngs=nnx.Rngs(0))


def test_cells_at_zero_weights():
  """Gates are 1/2: a gru keeps half of its state, and r halves one of the two biases of its candidate."""
  zeros = lambda gates: recurrent.Weights(jnp.zeros((1, gates)), jnp.zeros((1, gates)), jnp.zeros(gates),
                                          jnp.zeros(gates))
  z, h = jnp.ones((1, 1)), jnp.full((1, 1), 0.5)
  assert recurrent.gru(z, h, zeros(3)).tolist() == [[0.25]]
  biased = zeros(3)._replace(b=jnp.array([0.0, 0, 1]), c=jnp.array([0.0, 0, 2]))
  np.testing.assert_allclose(recurrent.gru(z, 0 * h, biased), 0.5 * np.tanh(1 + 0.5 * 2), rtol=1e-6)
  assert recurrent.rnn(z, h, zeros(1)).tolist() == [[0.0]]
  # Of the long memory 0.5, half is left; what it shows is half of tanh(0.25).
  np.testing.assert_allclose(recurrent.lstm(z, jnp.full((1, 2), 0.5), zeros(4)),
                             [[0.5 * np.tanh(0.25), 0.25]], rtol=1e-6)


def twice(router, x):
  """What two layers of one router answer, the second with the carry of the first."""
  first = router(x, CTX, modules.init_carry(router, x))
  return first, router(x, CTX, first.carry)


@pytest.mark.parametrize('passing, moves, learns', [('on', True, True), ('off', False, False),
                                                    ('stopped', True, False)])
def test_passing(passing, moves, learns):
  router = build(passing=passing)
  first, second = jax.jit(twice)(router, X)
  assert bool((first.carry['rmoe'] != second.carry['rmoe']).any()) == moves
  through = lambda state: router(X, CTX, modules.init_carry(router, X) | dict(rmoe=state)).carry['rmoe'].sum()
  grad = jax.jit(jax.grad(through))(jnp.ones((1, 4, 3)))
  assert bool(jnp.any(grad != 0)) == learns


def test_balance_of_two_layers_together():
  """The mean of what layers report is the loss of all their tokens; each by itself reports another one."""
  router = build()
  first, second = jax.jit(twice)(router, X)
  together = (first.aux.losses['balance'] + second.aux.losses['balance']) / 2
  sums = second.carry
  pooled = balance.layers(sums['rmoe_probs'], sums['rmoe_chosen'], sums['rmoe_layers'], MASK)[0] / 2
  np.testing.assert_allclose(together, pooled, rtol=1e-6)
  # By hand: E sum_e f_e P_e of the three real tokens of both layers, as one group of six.
  layers = (modules.init_carry(router, X), first.carry, second.carry)
  of_layer = lambda name: [np.asarray(b[name] - a[name])[0, :3] for a, b in zip(layers, layers[1:])]
  probs, chosen = (np.concatenate(of_layer(name)).mean(0) for name in ('rmoe_probs', 'rmoe_chosen'))
  np.testing.assert_allclose(together, 4 * (probs * chosen).sum(), rtol=1e-5)
  apart = jax.jit(twice)(build(pooled=False), X)
  assert abs(sum(one.aux.losses['balance'] for one in apart) / 2 - together) > 1e-4
  assert losses.token_mean(jnp.ones(1), MASK) == 1


def test_a_single_gate_is_a_probability_unless_said():
  weights = [jax.jit(lambda router: router(X, CTX, modules.init_carry(router, X)))(
      build(k=1, normalize_single=single)).assignment.weight for single in (False, True)]
  assert (weights[0][:, :3] < 1).all() and (weights[1] == 1).all()


def test_parameters_and_mistakes():
  """L D P + 6 P^2 + 6 P + L P E for one layer; without a cell the two matrices alone."""
  count = lambda router: sum(a.size for a in jax.tree.leaves(nnx.state(router, nnx.Param)))
  assert count(build()) == 8 * 3 + 6 * 9 + 6 * 3 + 3 * 4
  assert count(build(cell='none')) == 8 * 3 + 3 * 4 and build(cell='none').ties is None
  with pytest.raises(UserError, match='router rmoe: k=5 with num_experts=4'):
    build(k=5)


@pytest.mark.slow
def test_the_layers_options_weigh_a_shared_expert_and_add_a_bias():
  inner = dict(name='moe', executor='einsum', router=dict(name='rmoe', num_experts=4, width=3),
               experts=dict(name='glu', d_ff=4))
  make = lambda **fields: lookup.recipe('layer', dict(name='rmoe', inner=inner) | fields)(8, rngs=nnx.Rngs(0))
  layer = make(d_ff=4, moe_weight=0.25, use_bias=True)
  layer.b[...] = jnp.arange(8.0)
  carry = modules.init_carry(layer, X)
  y, aux, after = layer(X, CTX, carry)
  expected = 0.25 * layer.inner(X, CTX, carry)[0] + 0.5 * layer.shared(X, CTX, {})[0] + jnp.arange(8.0)
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
  assert aux.load.sum() == 6 and (after['rmoe'] != carry['rmoe']).any()
  alone = make()
  np.testing.assert_array_equal(alone(X, CTX, carry)[0], alone.inner(X, CTX, carry)[0])
