"""ZAYA's router: what it passes on over depth, who skips, what moves that."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe.core import assignment
from stmoe.core import contract
from stmoe.routers import zaya

MASK = jnp.ones((1, 3), bool)
# p = (0.6, 0.1, 0.3), (0.1, 0.2, 0.7), (0.3, 0.6, 0.1): two experts and one that skips.
LOGITS = jnp.log(jnp.array([[[0.6, 0.1, 0.3], [0.1, 0.2, 0.7], [0.3, 0.6, 0.1]]]))


def decided(bias):
  a, aux = zaya.zaya(LOGITS, jnp.array(bias), MASK, 1, num_virtual=1)
  return assignment.masks(a)[1].sum(-1)[0], aux.load.tolist()        # [S, E]


def test_the_bias_chooses_and_the_probability_weighs():
  weights, load = decided([0.0, 0.0, -1.0])                          # nobody skips
  np.testing.assert_allclose(weights, [[0.6, 0], [0, 0.2], [0, 0.6]], rtol=1e-6)
  assert load == [1, 2, 0]
  weights, load = decided([0.0, 0.0, 0.0])                           # the second token does
  np.testing.assert_allclose(weights, [[0.6, 0], [0, 0], [0, 0.6]], rtol=1e-6)
  assert load == [1, 1, 1]


def test_what_is_passed_on_is_the_sum_weighed_by_lambda():
  router = zaya.Zaya(4, num_experts=2, num_virtual=1, hidden=3, rngs=nnx.Rngs(0))
  assert router.bias[...].tolist() == [0, 0, -1]
  router.memory[...] = jnp.array([1.0, 2.0, 0.0])
  x = jax.random.normal(jax.random.key(0), (1, 3, 4))
  ctx = contract.Context(**contract.numbered(MASK), step=0, tokens=jnp.float32(3))
  r = x @ router.w_in[...]
  first = router(x, ctx, router.init_carry(x))
  second = router(x, ctx, first.carry)
  np.testing.assert_allclose(first.carry['zaya_3'], r, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(second.carry['zaya_3'], r * jnp.array([2.0, 3.0, 1.0]), rtol=1e-5, atol=1e-6)


def test_idle_experts_gain_bias_the_skipping_one_too():
  router = zaya.Zaya(4, num_experts=2, num_virtual=1, hidden=3, rate=0.5, rngs=nnx.Rngs(0))
  router.commit(contract.Aux(losses={}, load=jnp.array([6.0, 3.0, 0.0]), metrics={}))
  assert router.bias[...].tolist() == [-0.5, 0, -0.5]
