"""Dot-product attention (Vaswani et al., 2017, arXiv:1706.03762, section 3.2.1)."""

import jax
from jax import ad_checkpoint
import jax.numpy as jnp

from stmoe import axes

BLOCKS = 4                              # of queries, where no key is seen after its query
LONG = 256                              # queries for which fewer passes are worth another form
HIDDEN = -0.7 * float(jnp.finfo(jnp.float32).max)       # logit of a key that is not seen
# Of products: backward, the float32 of the softmax meets 16 bits.
PRECISION = dict(bfloat16=jax.lax.DotAlgorithmPreset.BF16_BF16_F32)
SHORTEST = 128                          # queries and keys for which cuDNN's kernel is taken
WIDEST = 128                            # of a head, for cuDNN's kernel
CAPABLE = 8, 0                          # compute capability of the GPUs that run it


def attend(q: jax.Array, k: jax.Array, v: jax.Array, *, mask: jax.Array | None, bias: jax.Array | None,
           scale: float, causal: bool = False) -> jax.Array:
  """Returns [B,T,H,P], softmax(scale q k^T + bias) v over the keys that `mask` shows.

  Args:
    q:    [B,T,H,P]; k, v: [B,K,N,P], where N divides H.
    mask: bool, bias: a number, broadcast to [B,H,T,K]; None = all keys, 0.
    causal: whether it is known that `mask` shows no key after its query, see `visible.Visible`. Where K = T,
      blocks of queries then have no products with the keys after them.
  """
  if _fused(q, k, bias):
    return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=scale, is_causal=causal,
                                        implementation='cudnn')
  width = q.shape[-1]
  if width == 1:
    # XLA for CPUs aborts the process in bfloat16 (jax 0.10 to 0.12): a second number of 0 changes nothing.
    q, k, v = (jnp.pad(a, ((0, 0), (0, 0), (0, 0), (0, 1))) for a in (q, k, v))
  (batch, queries, heads, _), (_, keys, shared, _) = q.shape, k.shape
  q = jnp.moveaxis(q.reshape(batch, queries, shared, heads // shared, -1), 1, 3)   # [B, N, G, T, P]
  k, v = (jnp.moveaxis(a, 1, 2) for a in (k, v))                     # [B, N, K, P]
  # What is named is kept for the backward, and so what it was turned from is not, see `core/units/kept.py`.
  q, k, v = (ad_checkpoint.checkpoint_name(a, 'turned') for a in (q, k, v))
  mask, bias = (_of_groups(a, heads // shared, queries, keys) for a in (mask, bias))

  def block(start, end, seen):
    masking = (a if a is None else a[..., start:end, :seen] for a in (mask, bias))
    product = _product_over_sum if queries >= LONG else _softmax_product
    return product(q[..., start:end, :], k[:, :, :seen], v[:, :, :seen], scale, *masking)

  y = jnp.concatenate([block(*ends) for ends in _blocks(queries, keys, causal)], axis=3)
  return jnp.moveaxis(y, 3, 1).reshape(batch, queries, heads, -1)[..., :width]     # [B, T, H, P]


def _softmax_product(q, k, v, scale, mask, bias):
  """[B,N,G,T,P] of q [B,N,G,T,P] and k, v [B,N,K,P]; mask and bias broadcast to [B,N,G,T,K]."""
  weights = jax.nn.softmax(_logits(q, k, scale, mask, bias))
  return _product('bngtk,bnkp->bngtp', weights.astype(v.dtype), v).astype(v.dtype)


def _product_over_sum(q, k, v, scale, mask, bias):
  """What `_softmax_product` returns, in fewer passes.

  The sum of the exponentials divides the product with v, not a factor of the product. Then the gradient of a
  row of logits needs no sum over the row, and XLA for CPUs computes it along with a product.
  """
  logits = _logits(q, k, scale, mask, bias)
  weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
  y = _product('bngtk,bnkp->bngtp', weights.astype(v.dtype), v)
  return (y / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)


def _logits(q, k, scale, mask, bias):
  """f32[B,N,G,T,K], `HIDDEN` where the mask hides a key."""
  logits = scale * _product('bngtp,bnkp->bngtk', q, k)
  logits = logits if bias is None else logits + bias
  return logits if mask is None else jnp.where(mask, logits, HIDDEN)


def _product(equation, a, b):
  """Sums are float32, forward and backward."""
  return jnp.einsum(equation, a, b, precision=PRECISION.get(a.dtype.name), preferred_element_type=jnp.float32)


def _of_groups(a, group, queries, keys):
  """A mask or bias, which broadcasts to [B,H,T,K], so that it broadcasts to [B,N,G,T,K]; None stays None."""
  if a is None:
    return None
  heads = (1, 1) if a.shape[1] == 1 else (-1, group)
  return jnp.broadcast_to(a, (*a.shape[:2], queries, keys)).reshape(a.shape[0], *heads, queries, keys)


def _blocks(queries, keys, causal):
  """(first query, end of the queries, end of the keys that they may see) of each block of queries.

  Where devices share the length, blocks would move rows between them, so there is one.
  """
  if not causal or queries != keys or queries < LONG or axes.num_shards('length') > 1:
    return [(0, queries, keys)]
  size = -(-queries // BLOCKS)
  return [(start, *[min(start + size, queries)] * 2) for start in range(0, queries, size)]


def _fused(q, k, bias):
  """Whether cuDNN's kernel, which keeps no [B,H,T,K] in memory, computes this: on one NVIDIA GPU in 16 bits.

  The GPU is that of the mesh in use. With several GPUs the compiler splits XLA's own form.
  """
  mesh = jax.sharding.get_abstract_mesh()
  long = min(q.shape[1], k.shape[1]) >= SHORTEST and q.shape[1] % 2 == k.shape[1] % 2 == 0
  return (bias is None and q.dtype.itemsize == 2 and q.shape[-1] % 8 == 0 and q.shape[-1] <= WIDEST and long
          and mesh.size == 1 and mesh.abstract_device is not None
          and mesh.abstract_device.device_kind.startswith('NVIDIA') and _has_kernel())


def _has_kernel():
  """Whether this process has a GPU by CUDA that runs cuDNN's kernel: a program may be for a GPU elsewhere."""
  try:
    gpu, *_ = jax.local_devices(backend='cuda')
  except RuntimeError:
    return False
  return tuple(map(int, gpu.compute_capability.split('.'))) >= CAPABLE
