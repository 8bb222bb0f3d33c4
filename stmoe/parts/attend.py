"""Dot-product attention (Vaswani et al., 2017, arXiv:1706.03762, section 3.2.1)."""

import jax
import jax.numpy as jnp

SHORTEST = 128                          # queries and keys for which cuDNN's kernel is taken
WIDEST = 128                            # of a head, for cuDNN's kernel


def attend(q: jax.Array, k: jax.Array, v: jax.Array, *, mask: jax.Array | None, bias: jax.Array | None,
           scale: float, causal: bool = False) -> jax.Array:
  """Returns [B,T,H,P], softmax(scale q k^T + bias) v over the keys that `mask` shows.

  Args:
    q:    [B,T,H,P]; k, v: [B,K,N,P], where N divides H.
    mask: bool, bias: a number, broadcast to [B,H,T,K]; None = all keys, 0.
    causal: whether it is known that `mask` shows no key after its query, see `visible.Visible`.
  """
  if _fused(q, k, bias):
    return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=scale, is_causal=causal,
                                        implementation='cudnn')
  width = q.shape[-1]
  if width == 1:
    # XLA for CPUs aborts the process in bfloat16 (jax 0.10 to 0.12): a second number of 0 changes nothing.
    q, k, v = (jnp.pad(a, ((0, 0), (0, 0), (0, 0), (0, 1))) for a in (q, k, v))
  return jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask, scale=scale)[..., :width]


def _fused(q, k, bias):
  """Whether cuDNN's kernel, which keeps no [B,H,T,K] in memory, computes this: on one NVIDIA GPU in 16 bits.

  The GPU is that of the mesh in use. With several GPUs the compiler splits XLA's own form.
  """
  mesh = jax.sharding.get_abstract_mesh()
  long = min(q.shape[1], k.shape[1]) >= SHORTEST and q.shape[1] % 2 == k.shape[1] % 2 == 0
  return (bias is None and q.dtype.itemsize == 2 and q.shape[-1] % 8 == 0 and q.shape[-1] <= WIDEST and long
          and mesh.size == 1 and mesh.abstract_device is not None
          and mesh.abstract_device.device_kind.startswith('NVIDIA') and _has_gpu())


def _has_gpu():
  """Whether this process has a GPU by CUDA: a program may be for a GPU that is elsewhere."""
  try:
    return bool(jax.local_devices(backend='cuda'))
  except RuntimeError:
    return False
