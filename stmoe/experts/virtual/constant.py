"""The constant expert: a learned vector, mixed with the input."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes


class Constant(nnx.Module):
  """Returns a_1 x + a_2 v with (a_1, a_2) = softmax(x w): the constant expert of MoE++ (arXiv:2410.07348).

  v [D] is drawn from N(0, 1), w [D,2] from N(0, 0.02^2), as in the released code.
  """

  def __init__(self, d_model: int, *, rngs):
    self.v = axes.param(nnx.initializers.normal(1.0), (d_model,), 'embed', rngs=rngs)
    self.w = axes.param(nnx.initializers.normal(0.02), (d_model, 2), 'embed', 'unmodeled', rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns f32[G,S,D] for x [G,S,D]."""
    x = x.astype(jnp.float32)
    mix = jax.nn.softmax(jnp.einsum('gsd,da->gsa', x, self.w[...], precision='highest'))     # [G, S, 2]
    return mix[..., :1] * x + mix[..., 1:] * self.v[...]
