"""Bi-level routing by hand: the flat router it equals, the two capacities, and numbers that do not factor."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.core import assignment
from stmoe.routers import smile
from stmoe.routers import switch

NODE = jnp.log(jnp.array([[[0.75, 0.25], [0.75, 0.25], [0.75, 0.25], [0.75, 0.25], [0.25, 0.75]]]))
LOCAL = jnp.log(jnp.array([[[0.5, 0.5], [0.75, 0.25], [0.75, 0.25], [0.25, 0.75], [0.25, 0.75]]]))
MASK = np.ones((1, 5), bool)
route = jax.jit(smile.smile, static_argnums=(2, 3, 4))
product = jax.jit(smile.product, static_argnums=2)


def kept(node_capacity, capacity):
  """Expert and weight of every token, 4 where it is dropped."""
  a, aux = route(product(NODE, LOCAL, 4), MASK, 2, node_capacity, capacity)
  return a.expert[0].tolist(), np.round(a.weight[0], 4).tolist(), aux


def test_by_hand():
  experts, weights, aux = kept(5, 5)
  assert experts == [0, 0, 0, 1, 3]
  assert weights == [0.375, 0.5625, 0.5625, 0.5625, 0.5625]
  # Nodes: f = (4/5, 1/5), P = (0.65, 0.35); places in them: g = (3/5, 2/5), Q = (1/2, 1/2).
  np.testing.assert_allclose(aux.losses['node_balance'], 2 * (0.8 * 0.65 + 0.2 * 0.35), rtol=1e-6)
  np.testing.assert_allclose(aux.losses['local_balance'], 1.0, rtol=1e-6)


def test_a_token_that_its_expert_drops_keeps_its_place_at_the_node():
  assert kept(3, 5)[0] == [0, 0, 0, 4, 3]                            # the fourth of node 0
  assert kept(5, 2)[0] == [0, 0, 4, 1, 3]                            # the third of expert 0
  assert kept(3, 2)[0] == [0, 0, 4, 4, 3]                            # the place of token 2 stays taken


def test_without_drops_it_is_the_flat_router_of_the_product():
  keys = jax.random.split(jax.random.key(0))
  logits = product(jax.random.normal(keys[0], (2, 12, 3)), jax.random.normal(keys[1], (2, 12, 2)), 6)
  mask = np.ones((2, 12), bool)
  ours = route(logits, mask, 3, 12, 12)[0]
  flat = jax.jit(switch.switch, static_argnums=2)(logits, mask, 12)[0]
  np.testing.assert_array_equal(ours.expert, flat.expert)
  np.testing.assert_allclose(ours.weight, flat.weight, rtol=1e-6)


def test_every_node_may_have_a_router_of_its_own():
  local = jnp.concatenate([LOCAL, LOCAL[..., ::-1]], axis=-1)        # node 1 has the other order
  a, _ = route(product(NODE, local, 4), MASK, 2, 5, 5)
  assert a.expert[0].tolist() == [0, 0, 0, 1, 2]
  assert assignment.live(a).all()


def test_numbers_that_do_not_factor():
  with pytest.raises(errors.UserError, match='nodes=3 does not divide num_experts=8; nearest: 1, 2, 4'):
    smile.Smile(4, num_experts=8, nodes=3, rngs=nnx.Rngs(0))
  assert smile.Smile(4, num_experts=12, rngs=nnx.Rngs(0)).nodes == 3
