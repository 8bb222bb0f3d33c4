"""The feature routers of the sparse all-MLP, by hand: tokens are channels, their entries positions."""

from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe.data.sources import texts
from stmoe.errors import UserError
from stmoe.routers import partial_prediction
from stmoe.routers import smlp_deterministic


def test_chunk_i_goes_to_expert_i_and_fills_it(context, call, edges):
  router = smlp_deterministic.SmlpDeterministic(3, num_experts=2, rngs=nnx.Rngs(0))
  routed = call(router, jnp.zeros((1, 6, 3)), context([[True] * 6]))
  assert edges(routed.assignment) == {(0, 0, 0, 1), (1, 0, 1, 1), (2, 0, 2, 1),
                                      (3, 1, 0, 1), (4, 1, 1, 1), (5, 1, 2, 1)}
  assert routed.assignment.capacity == 3 and routed.aux.load.tolist() == [3, 3] and not routed.aux.losses


# Four channels of five positions, two chunks; P = ceil(0.2 * 5) = 1 position decides.
X = np.array([[[1, 9, 9, 9, 9], [3, 9, 9, 9, 9], [-1, 9, 9, 9, 9], [-1, 9, 9, 9, 9]]], np.float32)


def partial(**fields):
  router = partial_prediction.PartialPrediction(5, num_experts=2, rngs=nnx.Rngs(0), **fields)
  router.w[...] = np.log([[1., 3.]])                                 # ln 3 for expert 1 times the mean
  return router


def test_a_chunk_goes_where_its_prefix_points_with_the_probability_as_weight(context, call, edges):
  assert partial().w.shape == (1, 2)
  routed = call(partial(), X, context([[True] * 4]))
  # Means 2 and -1: probabilities of expert 1 are 3^2 / (1 + 3^2) = 0.9 and 3^-1 / (1 + 3^-1) = 0.25.
  assert edges(routed.assignment) == {(0, 1, 0, 0.9), (1, 1, 1, 0.9), (2, 0, 0, 0.75), (3, 0, 1, 0.75)}
  # f = (1/2, 1/2) of chunks, and 2 * sum of f P = 1.
  np.testing.assert_allclose(routed.aux.losses['balance'], 1, rtol=1e-6)


def test_only_the_prefix_and_real_channels_count(context, call):
  real = context([[True, False, True, True]])
  one = call(partial(), X, real)
  later, padding = X.copy(), X.copy()
  later[..., 1:] = -5
  padding[:, 1] = 7
  weights = lambda routed: routed.assignment.masks()[1]
  for other in (later, padding):
    np.testing.assert_array_equal(weights(call(partial(), other, real)), weights(one))
  np.testing.assert_allclose(weights(one)[0, 0, 1, 0], 0.75, rtol=1e-6)          # the mean is 1, not 2 or 4


def test_the_prefix_is_the_share_that_has_no_loss():
  assert 0.07 * 100 > 7
  router = partial_prediction.PartialPrediction(100, num_experts=2, prefix=0.07, rngs=nnx.Rngs(0))
  assert router.w.shape == (7, 2) and texts._unscored(0.07, 100) == 7


def test_refusals_say_what_to_do(context):
  with pytest.raises(UserError, match='causal stack; nearest: data.loss_from=0.4 with allow_causal=True'):
    partial(prefix=0.4)(X, context([[True] * 4], causal=True), {})
  for make in (partial_prediction.PartialPrediction, smlp_deterministic.SmlpDeterministic):
    with pytest.raises(UserError, match='4 channels are not 3 equal chunks'):
      make(5, num_experts=3, rngs=nnx.Rngs(0))(X, context([[True] * 4]), {})
