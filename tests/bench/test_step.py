"""Which instructions of a compiled program are matrix products, and their share of a profile."""

import jax
import jax.numpy as jnp

from stmoe.bench import step as products

HLO = '''
%fused (p: f32[2,2]) -> f32[2,2] {
  %p = f32[2,2]{1,0} parameter(0)
  ROOT %dot.3 = f32[2,2]{1,0} dot(%p, %p), lhs_contracting_dims={1}
}

ENTRY %main (x: f32[2,2]) -> f32[2,2] {
  %x = f32[2,2]{1,0} parameter(0)
  %a.1 = f32[2,2]{1,0} fusion(%x), kind=kCustom, calls=%fused
  ROOT %b = f32[2,2]{1,0} add(%a.1, %x)
}
'''


def test_a_fusion_around_a_dot_is_a_product():
  assert products.with_products(HLO) == {'dot.3', 'a.1'}


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
