"""X-MoE and the perturbed cosine: slopes near zero, the learned temperature, what a second softmax bounds."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import lookup
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.routers import perturbed_cosine
from stmoe.routers import x_moe

D, E = 8, 8


def build(name='x_moe', **fields):
  return lookup.recipe('router', dict(fields, name=name, num_experts=E))(D, rngs=nnx.Rngs(0))


def test_lengths_of_tokens_and_experts_do_not_count():
  router, x = build(), np.random.default_rng(0).normal(size=(1, 3, D)).astype(np.float32)
  logits = jax.jit(lambda x: router.logits(x, None))
  z = logits(x)
  np.testing.assert_allclose(logits(7 * x), z, rtol=1e-4)
  assert router.w.shape == (D, E // 2) and np.abs(z).max() <= (1 + 1e-6) / 0.3
  np.testing.assert_allclose(build(temperature=0.25).scale(), 4, rtol=1e-6)
  router.log_scale[...] = jnp.array([9.0])
  np.testing.assert_allclose(router.scale(), 100, rtol=1e-5)


def test_the_slope_at_zero_is_finite_and_bounded_by_the_perturbation():
  slope = lambda f, h: np.abs(jax.jit(jax.jacobian(f))(h)).max()
  tiny, zero = jnp.array([1e-3, 0.0]), jnp.zeros(2)
  assert slope(x_moe.unit, tiny) > 900 and slope(x_moe.unit, zero) <= 1 / x_moe.SHORTEST
  smooth = lambda h: perturbed_cosine.perturbed(h, 0.1)
  assert slope(smooth, tiny) <= 10 and slope(smooth, zero) <= 10 + 1e-4


def test_two_softmaxes_make_even_weights_of_certain_tokens():
  logits, mask = jnp.array([[[1.0, -1.0, -1.0]]]), jnp.ones((1, 1), bool)
  route = lambda double: jax.jit(lambda s: x_moe.x_moe(
      s, mask, 1, 3, scale=100.0, double_softmax=double)[0].weight[0])(logits)
  np.testing.assert_allclose(route(False), [1, 0, 0], atol=1e-6)
  even = np.asarray(route(True))
  np.testing.assert_allclose(even[0] / even[1], np.e, rtol=1e-5)     # the most that it can be
  assert round(float(-np.sum(even * np.log(even))), 3) == 0.975
  assert round(float(even[0] - even[1]), 3) == 0.364


@pytest.mark.parametrize('fields, said', [
    (dict(k=9), 'k=9 with num_experts=8; k is at least 1 and at most 8'),
    (dict(k=1, double_softmax=True), 'one choice has softmax 1; nearest: 2')])
def test_mistakes_are_named(fields, said):
  for name in ('x_moe', 'perturbed_cosine'):
    with pytest.raises(UserError, match=said):
      build(name, **fields)


@pytest.mark.parametrize('name', ['x_moe', 'perturbed_cosine'])
def test_the_softmax_of_logits_is_what_weighs_experts_and_the_z_loss_is_of_cosines(name):
  """So what reads logits (the margin of probabilities, `balance`, `offset`) means the router's own."""
  router, x = build(name, k=E), np.random.default_rng(0).normal(size=(1, 3, D)).astype(np.float32)
  ctx = contract.Context.of(jnp.asarray(x))
  routed, logits = jax.jit(lambda x: (router(x, ctx, {}), router.logits(x, ctx)))(x)
  weights = routed.assignment.masks()[1].sum(-1)                     # [1, 3, E], of all experts
  np.testing.assert_allclose(weights, jax.nn.softmax(logits, axis=-1), rtol=1e-5)
  assert np.ptp(weights, axis=-1).min() > 0.05                       # at temperature 0.3
  cosines = router.projected(x) @ router.embeddings().T
  z = np.mean(jax.nn.logsumexp(cosines, axis=-1) ** 2)
  np.testing.assert_allclose(routed.aux.losses['z'], z, rtol=1e-5)


def test_the_entropy_loss_is_of_sequences():
  """Two sequences in one group, each sure of another expert: together they would be balanced."""
  mask = jnp.ones((1, 2), bool)
  ctx = contract.Context(**contract.numbered(mask), step=jnp.int32(0), tokens=jnp.float32(2))
  router = build(temperature=0.01, fixed_temperature=True)
  sure = 100 * jnp.full((1, 2, E), -1.0).at[0, [0, 1], [0, 1]].set(1.0)
  decide = jax.jit(lambda segments: router.decide(sure, ctx.replace(segments=segments), {}).aux)
  entropy = lambda segments: decide(segments).losses['entropy']
  np.testing.assert_allclose(entropy(jnp.array([[1, 1]])), -np.log(2), rtol=1e-4)
  np.testing.assert_allclose(entropy(jnp.array([[1, 2]])), 0, atol=1e-4)
