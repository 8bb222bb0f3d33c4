"""MoFME's layer: the router reads the residual stream, the experts what the layer's own norm leaves of it."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import lookup
from tests.layers import calls

D = 8
FIELDS = dict(name='mofme', d_ff=12, router=dict(name='mofme', num_experts=3, k=2), executor='einsum',
              experts=dict(name='film'))


def make(**fields):
  return lookup.recipe('layer', FIELDS | fields)(D, rngs=nnx.Rngs(0))


def test_a_larger_stream_has_sharper_gates_and_the_same_features():
  layer, x = make(), calls.inputs(D)
  x -= x.mean(-1, keepdims=True)
  layer.router.w[...] *= 50
  both = lambda: [calls.call(layer, inputs, calls.context()) for inputs in (x, 3 * x)]
  (_, aux), (_, sharper) = both()
  assert (aux.load == sharper.load).all()                            # the order of the logits is the same
  assert float(sharper.metrics['router_entropy']) < 0.8 * float(aux.metrics['router_entropy'])
  layer.router.w[...] = 0
  layer.router.b[...] = jnp.array([1.0, 0.5, -9.0])                  # gates that do not know x
  (y, _), (larger, _) = both()
  np.testing.assert_allclose(y, larger, rtol=2e-3, atol=1e-4)        # LayerNorm's epsilon remains


def test_the_released_form_has_one_live_expert_fewer_and_an_activation():
  layer = make(router=dict(name='mofme', num_experts=2, k=2), virtual=('activated',))
  assert layer.router.w.shape == (D, 3) and layer.experts.scale.shape == (2, D, D)
  layer.router.b[...] = jnp.array([-9.0, -9.0, 9.0])
  layer.router.w[...] = 0
  x = calls.inputs(D)
  y, aux = calls.call(layer, x, calls.context())
  u = layer.norm(x)
  u = jax.nn.gelu(u @ layer.p[...], approximate=False) * (u @ layer.q[...])
  # The logit of the activation is 18 above, its gate 1 - 3e-8.
  want = layer.adaptor(jax.nn.gelu(u, approximate=False), calls.context(), {})[0]
  np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
  assert aux.load[2] == calls.B * calls.T
