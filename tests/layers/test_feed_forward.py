"""The dense layer, its sparse twin with equal experts, RMSNorm and the heads."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe.core.transport import layouts
from stmoe.experts import glu
from stmoe.layers import dense
from stmoe.parts import embed
from stmoe.parts import norm


class Ctx:
  train = False
  key = None

  def fold(self, name):
    return self


def test_gated_layer_is_the_published_product():
  layer = dense.Dense(6, d_ff=10, activation='gelu', gated=True, rngs=nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(0), (2, 3, 6))
  tanh_gelu = lambda a: 0.5 * a * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a ** 3)))
  expected = (tanh_gelu(x @ layer.wi[...]) * (x @ layer.wg[...])) @ layer.wo[...]
  y, aux, carry = layer(x, Ctx(), {})
  np.testing.assert_allclose(y, expected, atol=1e-6)
  assert aux is None and carry == {}


def test_every_glu_expert_equals_a_dense_layer_and_scales_by_its_bias():
  bank = glu.Glu(6, num_experts=2, d_ff=10, activation='silu', multiplicative_bias=True, rngs=nnx.Rngs(0))
  rows = jax.random.normal(jax.random.key(0), (2, 4, 6))
  layer = dense.Dense(6, d_ff=10, activation='silu', gated=True, rngs=nnx.Rngs(1))
  for e in range(2):
    layer.wi[...], layer.wg[...], layer.wo[...] = bank.wi[e], bank.wg[e], bank.wo[e]
    y = bank(layouts.Buckets(rows)).x[e]
    np.testing.assert_allclose(y, layer(rows[None, e], Ctx(), {})[0][0], atol=1e-6)
  before = bank(layouts.Buckets(rows)).x
  bank.b[...] = jnp.stack([jnp.full(10, 3.0), jnp.ones(10)])         # only the first expert triples
  np.testing.assert_allclose(bank(layouts.Buckets(rows)).x, before * jnp.array([3.0, 1.0])[:, None, None],
                             atol=1e-5)


def test_norm_has_unit_mean_square_whatever_the_scale_of_its_input():
  layer = norm.RMSNorm(64, rngs=nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(0), (3, 64)) + 2              # a mean that must stay
  np.testing.assert_allclose(jnp.mean(layer(100 * x) ** 2, axis=-1), 1, rtol=1e-4)
  np.testing.assert_allclose(layer(100 * x), layer(x), rtol=1e-4)
  assert layer(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_tied_head_is_scaled_and_heads_are_float32():
  table = embed.Embed(50, 64, rngs=nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(0), (1, 2, 64)).astype(jnp.bfloat16)
  logits = table.logits(x)
  rounded = table.table[...].astype(jnp.bfloat16).astype(jnp.float32)
  np.testing.assert_allclose(logits, x.astype(jnp.float32) @ rounded.T / 8, atol=1e-5)
  assert logits.dtype == embed.Head(64, 50, rngs=nnx.Rngs(0))(x).dtype == jnp.float32
