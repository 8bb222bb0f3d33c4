"""What the attention layers of a stack may see: made once per forward, shared by all of them."""

import dataclasses
import typing

from flax import struct
import jax
import jax.numpy as jnp


@struct.dataclass
class Visible:
  """What the attention layers of a stack see: made once per forward, shared by all of them.

  mask:   bool[B,1,T,K], True where a query sees a key.
  bias:   f32[1,H,T,K] added to the logits, or None.
  turn:   (cos, sin) of `rotary.table`, or None.
  memory: [B,K,D] source of keys and values in cross-attention; None = the layer's own input.
  slot:   i32[] place in the cache of the first of the T tokens; only for `Attention.extend`.
  windows: dict window -> the mask of blocks that have it, where blocks have windows of their own.
  causal: whether it is known that T = K and that no mask shows a key after its query; a kernel may then leave
    out what lies above the diagonal.
  """
  mask: jax.Array
  bias: jax.Array | None = None
  turn: tuple | None = None
  memory: jax.Array | None = None
  slot: jax.Array | None = None
  windows: dict[int, jax.Array] = dataclasses.field(default_factory=dict)
  causal: bool = struct.field(pytree_node=False, default=False)

  def masked(self, change: typing.Callable[[jax.Array], jax.Array]) -> 'Visible':
    """Returns the same with `change` applied to every mask."""
    return dataclasses.replace(self, causal=False, mask=change(self.mask),
                               windows={w: change(mask) for w, mask in self.windows.items()})

  def within(self, window: int | None) -> 'Visible':
    """Returns what a block with a `window` of its own sees; None = without."""
    return dataclasses.replace(self, mask=self.mask if window is None else self.windows[window], windows={})


def same_segment(queries: jax.Array, keys: jax.Array) -> jax.Array:
  """Returns bool[B,1,T,K]: query and key belong to one packed sequence.

  Args:
    queries, keys: i32[B,T] and i32[B,K] segment ids, 0 = padding. Padding sees padding:
      then no row is without any key, and nothing real ever reads padding.
  """
  return (queries[:, :, None] == keys[:, None, :])[:, None]          # [B, 1, T, K]


def causal(segments: jax.Array, prefix: jax.Array | None = None, window: int | None = None) -> jax.Array:
  """Returns bool[B,1,T,T]: same segment and the key not after the query.

  Args:
    segments: i32[B,T].
    prefix:   i32[B,T] or None; positions with 1 see each other in both directions
      (prefix language model).
    window:   a query sees itself and the window - 1 positions before (Mistral, arXiv:2310.06825);
      None = all.
  """
  length = segments.shape[1]
  visible = jnp.tril(jnp.ones((length, length), bool))[None, None]   # [1, 1, T, T]
  if window is not None:
    visible = visible & ~jnp.tril(visible, -window)
  if prefix is not None:
    inside = prefix > 0
    visible = visible | (inside[:, :, None] & inside[:, None, :])[:, None]
  return visible & same_segment(segments, segments)                  # [B, 1, T, T]


def extended(segments: jax.Array, keys: jax.Array, slot: jax.Array, prefix: jax.Array | None = None,
             window: int | None = None) -> jax.Array:
  """Returns bool[B,1,T,K]: what T tokens see that were put into a cache at `slot`; see `causal`.

  Args:
    segments: i32[B,T] of the tokens; keys: i32[B,K] of the cache, with them in it.
    slot:     i32[] place of the first token.
    prefix, window: as for `causal`; padding among the keys does not count in a window.
  """
  place = slot + jnp.arange(segments.shape[1])                       # [T]
  visible = (jnp.arange(keys.shape[1]) <= place[:, None])[None, None]
  if window is not None:
    number = jnp.cumsum(keys > 0, axis=1)                            # [B, K]
    visible = visible & (number[:, place, None] - number[:, None, :] < window)[:, None]
  if prefix is not None:
    inside = jax.lax.dynamic_update_slice_in_dim(jnp.zeros_like(keys), prefix, slot, 1)
    visible = visible | ((prefix > 0)[:, :, None] & (inside > 0)[:, None, :])[:, None]
  return visible & same_segment(segments, keys)                      # [B, 1, T, K]
