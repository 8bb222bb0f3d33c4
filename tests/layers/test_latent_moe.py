"""LatentMoE: with square projections that undo each other it is the ordinary layer; what is narrow."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import lookup
from tests.layers import calls

D = 8
FIELDS = dict(router=dict(name='smoe', num_experts=4, k=2), executor='einsum',
              experts=dict(name='mlp', d_ff=6, activation='relu2'))


def make(name, **fields):
  return lookup.recipe('layer', dict(FIELDS, name=name) | fields)(D, rngs=nnx.Rngs(0))


def test_with_projections_that_undo_each_other_it_is_the_layer_of_the_models_width():
  latent, plain = make('latent_moe', latent=D), make('moe')
  turn = jnp.linalg.qr(jax.random.normal(jax.random.key(3), (D, D)))[0]
  latent.inward[...], latent.outward[...] = turn, turn.T
  latent.router, plain.experts.wi[...] = plain.router, turn @ latent.experts.wi[...]
  plain.experts.wo[...] = latent.experts.wo[...] @ turn.T
  x = calls.inputs(D)
  (y, aux), (want, expected) = (calls.call(layer, x, calls.context()) for layer in (latent, plain))
  np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
  assert jnp.abs(y).max() > 1e-3 and (aux.load == expected.load).all()


def test_the_router_sees_the_models_width_and_experts_the_latent_one():
  layer = make('latent_moe', latent=3)
  assert layer.router.w.shape == (D, 4) and layer.experts.wi.shape == (4, 3, 6)
  y, aux = calls.call(layer, calls.inputs(D), calls.context())
  assert y.shape == (calls.B, calls.T, D) and aux.load.sum() == 2 * calls.B * calls.T
