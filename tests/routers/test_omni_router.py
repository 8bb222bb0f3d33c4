"""Omni-router: what tokens of later layers keep, noise, groups; equality over stacks is in tests/parts."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import lookup
from stmoe import modules
from stmoe.core import contract

CTX = contract.Context(**contract.numbered(jnp.ones((1, 5), bool)), step=0, tokens=jnp.float32(5))
X = jax.random.normal(jax.random.key(0), (1, 5, 4))


def build(**fields):
  return lookup.recipe('router', dict(dict(name='omni_router', num_experts=3, init_std=1.0), **fields))(
      4, rngs=nnx.Rngs(0))


@jax.jit
def routed(router, x, ctx, carry):
  return router(x, ctx, carry)


def after(router, before):
  """(i32[5] experts, agreement) of a layer above one whose experts were `before`."""
  own = routed(router, X, CTX, {'omni_router_0': jnp.asarray([before], jnp.int32)})
  return own.carry['omni_router_0'][0], own.aux.metrics['agreement'], own.assignment


def test_every_layer_decides_again_or_keeps_the_first_decision():
  own, none, _ = after(build(), [-1] * 5)
  assert none == 0
  other = (own + 1) % 3
  decided, agreement, _ = after(build(), other.at[0].set(own[0]))
  assert decided.tolist() == own.tolist() and np.isclose(agreement, 1 / 5)
  kept, agreement, a = after(build(share='decision'), other)
  assert kept.tolist() == other.tolist() == a.expert[0].tolist() and agreement == 1
  # The weight is this layer's own probability of the expert that is kept.
  router = build(share='decision')
  probs = jax.nn.softmax(router.logits(X, CTX))[0]
  np.testing.assert_allclose(a.weight[0], probs[jnp.arange(5), other], rtol=1e-6)
  assert after(router, [-1] * 5)[0].tolist() == own.tolist()


def test_noise_is_added_in_training_alone():
  router, key = build(noise_std=0.5), jax.random.key(1)
  quiet = router.logits(X, CTX.replace(key=key))
  loud = router.logits(X, CTX.replace(key=key, train=True))
  np.testing.assert_array_equal(quiet, router.logits(X, CTX))
  assert 0.2 < float(jnp.std(loud - quiet)) < 1.0
  np.testing.assert_array_equal(build(noise_std=0.0).logits(X, CTX.replace(key=key, train=True)), quiet)


def test_groups_have_memories_and_matrices_of_their_own():
  assert build(group=2).ties == ('omni_router_2', ('w', 'b')) and build(share='nothing').ties is None
  assert list(modules.init_carry(build(group=2), X)) == ['omni_router_2']
