"""Gated experts with all that gpt-oss has of them, against their formula."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe.core.transport import layouts
from stmoe.experts import glu


def test_biases_slope_offset_and_limit():
  bank = glu.Glu(5, num_experts=3, d_ff=4, activation='silu', limit=0.8, slope=1.7, offset=1.0, use_bias=True,
                 init_scale=4.0, rngs=nnx.Rngs(0))
  assert not any(np.any(b[...]) for b in (bank.bi, bank.bg, bank.bo))
  for number, b in enumerate((bank.bi, bank.bg, bank.bo)):
    b[...] = jax.random.normal(jax.random.key(number), b.shape)
  x = jax.random.normal(jax.random.key(9), (3, 6, 5))
  into = lambda w, b: jnp.einsum('erd,edf->erf', x, w[...]) + b[...][:, None]
  h, up = into(bank.wi, bank.bi), into(bank.wg, bank.bg)
  assert (h > 0.8).any() and (h < -0.8).any() and (jnp.abs(up) > 0.8).any()
  h, up = jnp.minimum(h, 0.8), jnp.clip(up, -0.8, 0.8)
  h = h / (1 + jnp.exp(-1.7 * h)) * (up + 1)
  want = jnp.einsum('erf,efd->erd', h, bank.wo[...]) + bank.bo[...][:, None]
  np.testing.assert_allclose(bank(layouts.Buckets(x)).x, want, rtol=1e-4, atol=1e-5)
