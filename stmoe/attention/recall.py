"""Attention of one query to a cache, whose keys lie as it reads them: [B,N,K,P], head after head.

A token that is written has one query. Its products with [B,K,N,P], the order in which keys are made, would
turn the whole cache at every token.
"""

import jax
import jax.numpy as jnp

from stmoe.parts import attend as attend_lib
from stmoe.parts import cache as caches

PLACES = 2                               # the axis of places, K


def empty(batch: int, heads: int, length: int, width: int, dtype: jax.typing.DTypeLike) -> dict:
  """Returns the empty cache of a layer: dict of k and v [B,N,K,P], for K = `length` places."""
  zeros = jnp.zeros((batch, heads, length, width), dtype)
  return dict(k=zeros, v=zeros)


def turned(k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns (k, v) [B,N,K,P], as a cache has them, of k and v [B,K,N,P]; and the other way round."""
  return k.swapaxes(1, PLACES), v.swapaxes(1, PLACES)


def kept(k: jax.Array, v: jax.Array) -> dict[str, jax.Array]:
  """Returns the cache of a layer with the keys and values [B,K,N,P] of K places."""
  return dict(zip('kv', turned(k, v)))


def extended(cache: dict[str, jax.Array], k: jax.Array, v: jax.Array, slot: jax.Array) -> dict:
  """Returns the cache with keys and values [B,T,N,P] of T tokens from place `slot` i32[] on."""
  return caches.extended(cache, kept(k, v), slot, PLACES)


def attend(q: jax.Array, cache: dict[str, jax.Array], *, mask: jax.Array | None, bias: jax.Array | None,
           scale: float) -> jax.Array:
  """Returns [B,T,H,P]: `attend.attend` of q [B,T,H,P] to a cache, which more queries than one turn."""
  if q.shape[1] == 1:
    return one(q, cache, mask=mask, bias=bias, scale=scale)
  k, v = turned(**cache)
  return attend_lib.attend(q, k, v, mask=mask, bias=bias, scale=scale)


def one(q: jax.Array, cache: dict[str, jax.Array], *, mask: jax.Array | None, bias: jax.Array | None,
        scale: float, sinks: jax.Array | None = None) -> jax.Array:
  """Returns [B,1,H,P], softmax(scale q k^T + bias) v over the keys that `mask` shows: `attend.attend`.

  Args:
    q:     [B,1,H,P], where N divides H. cache: dict of k and v [B,N,K,P].
    mask:  bool, bias: a number, broadcast to [B,H,1,K]; None = all keys, 0.
    sinks: f32[H] a logit of each head beside those of the keys, whose value is 0; see `attention.Attention`.
  """
  k, v = cache['k'], cache['v']
  batch, heads, _, width = k.shape
  rows = q.reshape(batch, heads, -1, width)                          # [B, N, H/N, P]
  logits = scale * jnp.einsum('bnrp,bnkp->bnrk', rows, k,
                              preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
  logits = logits.reshape(batch, q.shape[2], 1, -1)                  # [B, H, 1, K]
  logits = logits if bias is None else logits + bias
  logits = logits if mask is None else jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
  if sinks is not None:
    own = jnp.broadcast_to(sinks[:, None, None], (*logits.shape[:3], 1))
    logits = jnp.concatenate([logits, own], axis=-1)                 # [B, H, 1, K+1]
  probs = jax.nn.softmax(logits, axis=-1)[..., :k.shape[2]].astype(v.dtype)
  return jnp.einsum('bnrk,bnkp->bnrp', probs.reshape(*rows.shape[:3], -1), v).reshape(q.shape)
