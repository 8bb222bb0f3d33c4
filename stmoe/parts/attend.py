"""Dot-product attention (Vaswani et al., 2017, arXiv:1706.03762, section 3.2.1)."""

import jax
import jax.numpy as jnp


def attend(q: jax.Array, k: jax.Array, v: jax.Array, *, mask: jax.Array | None, bias: jax.Array | None,
           scale: float) -> jax.Array:
  """Returns [B,T,H,P], softmax(scale q k^T + bias) v over the keys that `mask` shows.

  Args:
    q:    [B,T,H,P]; k, v: [B,K,N,P], where N divides H.
    mask: bool, bias: a number, broadcast to [B,H,T,K]; None = all keys, 0.
  """
  width = q.shape[-1]
  if width == 1:
    # XLA for CPUs aborts the process in bfloat16 (jax 0.10 to 0.12): a second number of 0 changes nothing.
    q, k, v = (jnp.pad(a, ((0, 0), (0, 0), (0, 0), (0, 1))) for a in (q, k, v))
  return jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask, scale=scale)[..., :width]
