"""The residual layer of PR-MoE: coefficients of a token, and what a dropped one keeps."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import lookup
from stmoe.core import contract


def build(mix):
  inner = dict(name='moe', executor='einsum', experts=dict(name='mlp', d_ff=6),
               router=dict(name='pr_moe', num_experts=2, capacity_factor=(0.5, 0.5), min_capacity=1))
  return lookup.recipe('layer', dict(name='pr_moe', inner=inner, d_ff=6, mix=mix))(4, rngs=nnx.Rngs(0))


@jax.jit
def run(layer, x):
  """(y of the layer, of its routed part, of its dense part)."""
  whole = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
  ctx = contract.Context(mask=whole >= 0, ids=whole, positions=whole, segments=jnp.ones_like(whole),
                         step=jnp.int32(0), tokens=jnp.float32(whole.size))
  return layer(x, ctx, {})[0], layer.inner(x, ctx, {})[0], layer.mlp(x, ctx, {})[0]


def test_learned_coefficients_do_not_know_of_drops():
  layer, x = build('learned'), jax.random.normal(jax.random.key(0), (1, 6, 4))
  layer.b[...] = jnp.log(jnp.array([3.0, 1.0]))
  layer.w[...] = jnp.zeros((4, 2))
  y, routed, dense = run(layer, x)
  np.testing.assert_allclose(y, 0.75 * routed + 0.25 * dense, rtol=1e-5, atol=1e-6)
  dropped = ~np.asarray(routed).any(-1)[0]
  assert dropped.sum() >= 2 and np.abs(np.asarray(y)[0, dropped]).min() > 0


def test_a_sum_has_no_coefficients():
  layer, x = build('sum'), jax.random.normal(jax.random.key(0), (1, 6, 4))
  y, routed, dense = run(layer, x)
  assert layer.w is None and layer.b is None
  np.testing.assert_allclose(y, routed + dense, rtol=1e-6)
