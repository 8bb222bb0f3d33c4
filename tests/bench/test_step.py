"""The share of a profile that matrix products take."""

import jax
import jax.numpy as jnp

from stmoe.bench import step as products

def test_share_of_a_profile(tmp_path):
  def shares(f, *inputs):
    compiled = jax.jit(f).lower(*inputs).compile()
    compiled(*inputs).block_until_ready()
    folder = tmp_path / f.__name__
    with jax.profiler.trace(folder):
      compiled(*inputs).block_until_ready()
    return products.of_products(folder, compiled.as_text())

  def mostly(x, w):
    return jax.lax.scan(lambda x, _: (jnp.tanh(x) @ w, None), x, None, length=4)[0]

  def none(x, w):
    return jnp.cumsum(jnp.sin(x), 0) + w[:1]

  x, w = jnp.ones((512, 256)), jnp.ones((256, 256))
  assert 0 < shares(mostly, x, w) < 1
  assert shares(none, x, w) == 0
