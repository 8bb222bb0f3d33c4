"""Shared experts beside a routed layer: the sum, the gate of Qwen2-MoE, what is passed through."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import lookup
from stmoe import modules
from stmoe.core import contract
from stmoe.layers import dense

D = 8
ROUTED = dict(name='moe', executor='einsum', router=dict(name='deepseek_v3', num_experts=4, rate=0.5),
              experts=dict(name='glu', d_ff=4))


def make(**fields):
  return lookup.recipe('layer', dict(name='shared', d_ff=6, num_shared=2, inner=ROUTED) | fields)(
      D, rngs=nnx.Rngs(0))


@jax.jit
def call(layer, x):
  whole = jnp.ones(x.shape[:2], jnp.int32)
  ctx = contract.Context(mask=whole > 0, ids=whole, positions=whole, segments=whole, step=jnp.int32(0),
                         tokens=jnp.float32(whole.size))
  parts = layer.shared(x, ctx, {})[0], layer.inner(x, ctx, {})[0]
  return *layer(x, ctx, dict(memory=x)), parts


def test_output_is_the_sum_and_the_rest_passes_through():
  layer, x = make(), jax.random.normal(jax.random.key(0), (2, 5, D))
  y, aux, carry, (shared, routed) = call(layer, x)
  np.testing.assert_allclose(y, shared + routed, rtol=1e-6, atol=1e-6)
  assert jnp.abs(shared).max() > 1e-3 < jnp.abs(routed).max()
  assert aux.load.sum() == 2 * 5 * 2 and (carry['memory'] == x).all()
  assert isinstance(layer.shared, dense.Dense) and layer.shared.wg.shape == (D, 2 * 6)
  modules.commit(layer, aux.replace(load=jnp.array([3.0, 1.0, 0.0, 0.0])))
  assert layer.inner.router.bias[...].tolist() == [-0.5, 0.0, 0.5, 0.5]


def test_sigmoid_gate():
  layer, x = make(sigmoid_gate=True), jax.random.normal(jax.random.key(0), (2, 5, D))
  layer.gate[...] = jnp.arange(D, dtype=jnp.float32)[:, None] - 3
  y, _, _, (shared, routed) = call(layer, x)
  weight = 1 / (1 + np.exp(-(x @ (jnp.arange(D) - 3.0))))
  np.testing.assert_allclose(y, weight[..., None] * shared + routed, rtol=1e-5, atol=1e-6)


def test_memory_across_layers_is_that_of_the_routed_layer():
  class Remembering(nnx.Module):
    def init_carry(self, x):
      return dict(seen=x)
  layer = make()
  assert modules.init_carry(layer, jnp.ones((1, 2, D))) == {}
  layer.inner = Remembering()
  assert list(modules.init_carry(layer, jnp.ones((1, 2, D)))) == ['seen']
