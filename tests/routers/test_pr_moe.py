"""The gates of PR-MoE by hand: which tokens a full expert keeps, and what the rest of a token weighs."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.core import assignment
from stmoe.core import contract
from stmoe.routers import pr_moe

# Four tokens want expert 0, and then 1, 1, 2, 2.
PROBS = jnp.array([[[0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.7, 0.1, 0.2], [0.8, 0.05, 0.15]]])
MASK = np.ones((1, 4), bool)
route = jax.jit(pr_moe.pr_moe, static_argnums=(2, 3), static_argnames='keep')


def weights(k, keep, capacity=2, **draws):
  """f32[4,3] what every expert weighs for a token."""
  a, aux = route(jnp.log(PROBS), MASK, capacity, k, keep=keep, **draws)
  return np.asarray(assignment.masks(a)[1].sum(-1)[0]), a, aux


def test_a_random_part_of_the_tokens_has_places_in_their_order():
  uniform = jnp.array([[0.1, 0.9, 0.2, 0.8]])[..., None] * jnp.ones(3)
  found, a, aux = weights(1, 'random', uniform=uniform)
  np.testing.assert_allclose(found[:, 0], [0, 0.6, 0, 0.8], rtol=1e-6)
  assert a.slot.tolist() == [[2, 0, 2, 1]] and aux.load.tolist() == [4, 0, 0]
  np.testing.assert_allclose(aux.metrics['drop_frac'], 0.5)
  np.testing.assert_allclose(weights(1, 'random')[0][:, 0], [0.5, 0.6, 0, 0], rtol=1e-6)       # evaluation


def test_the_most_probable_tokens_or_the_first_ones():
  assert weights(1, 'probs')[0][:, 0].astype(bool).tolist() == [False, False, True, True]
  # Token 0 and 1 take both places of expert 0; by choices alone 1 and 2 have room for all.
  assert weights(2, 'position')[0].astype(bool).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 1]]


def test_what_survives_is_divided_by_its_sum():
  found, _, aux = weights(2, 'choice')
  np.testing.assert_allclose(found[0], [0.625, 0.375, 0], rtol=1e-6)
  np.testing.assert_allclose(found[2], [0, 0, 1], rtol=1e-6)         # its first choice was dropped
  np.testing.assert_allclose(aux.losses['balance'], 3 * PROBS[0, :, 0].mean(), rtol=1e-6)      # first choices
  _, _, aux = weights(3, 'probs')
  np.testing.assert_allclose(aux.losses['balance'], 1.0, rtol=1e-6)  # f = 1/3 each of all three choices


def test_noise_is_for_the_only_or_the_second_choice():
  gumbel = jnp.array([0.0, 0.0, 9.0]) * jnp.ones((1, 4, 1))
  assert weights(1, 'choice', 4, gumbel=gumbel)[1].expert.tolist() == [[2, 2, 2, 2]]
  assert weights(2, 'choice', 4, gumbel=gumbel)[1].expert.tolist() == [[0, 0, 0, 0, 2, 2, 2, 2]]


def test_capacity_is_rounded_up_and_later_tokens_decide_only_if_that_is_accepted():
  build = lambda **fields: pr_moe.PRMoE(4, num_experts=3, min_capacity=1, rngs=nnx.Rngs(0), **fields)
  whole = jnp.broadcast_to(jnp.arange(4), (1, 4))
  ctx = contract.Context(mask=jnp.asarray(MASK), ids=whole, positions=whole, segments=jnp.ones_like(whole),
                         step=jnp.int32(0), tokens=jnp.float32(4), causal=True)
  assert build()(jnp.ones((1, 4, 4)), ctx, {}).assignment.capacity == 2            # 4/3 of a place
  with pytest.raises(errors.UserError, match="keep='probs' lets later tokens .* nearest: keep='choice'"):
    build(k=3)(jnp.ones((1, 4, 4)), ctx, {})
  with pytest.raises(errors.UserError, match='keep=.random. lets later'):
    build()(jnp.ones((1, 4, 4)), ctx.replace(train=True), {})
  with pytest.raises(errors.UserError, match='sampled=True with k=3'):
    build(k=3, sampled=True)
