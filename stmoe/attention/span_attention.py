"""Attention over the positions just before a token, with learned relative positions."""

from flax import nnx
from flax import struct
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe.core import contract
from stmoe.core import noise
from stmoe.errors import UserError
from stmoe.parts import linear


@struct.dataclass
class Visible:
  """What the attention layers of a stack see: made once per forward, shared by all of them.

  pe:       f32[P,W] one table for all layers and heads; its column W - i belongs to the position i
    before the query. W is the span.
  segments: i32[B,T] sequence number of packed rows; a token sees its own sequence.
  history:  [B,N,D] inputs of this layer at the N positions before the rows, or None. They belong to
    each row's first sequence, and differ between layers.
  """
  pe: jax.Array
  segments: jax.Array
  history: jax.Array | None = None


def to_window(full: jax.Array, span: int) -> jax.Array:
  """Returns [...,T,W]: for query t of full [...,T,W+T] the keys t, ..., t+W-1, which are the W before it.

  Pure reshaping: every row moves a step to the left of the row before.

  >>> to_window(jnp.arange(6.0).reshape(2, 3), 1).tolist()           # 2 queries, keys at -1, 0, 1
  [[0.0], [4.0]]
  """
  *batch, length, keys = full.shape
  flat = full.reshape(*batch, length * keys)
  flat = jnp.pad(flat, [(0, 0)] * len(batch) + [(0, length)])
  return flat.reshape(*batch, length, keys + 1)[..., :span]          # [..., T, W]


def from_window(window: jax.Array) -> jax.Array:
  """Returns [...,T,W+T], the inverse of `to_window` with 0 outside the window [...,T,W].

  >>> from_window(jnp.array([[1.0], [2.0]])).tolist()
  [[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]
  """
  *batch, length, span = window.shape
  wide = jnp.pad(window, [(0, 0)] * len(batch) + [(0, 0), (0, length + 1)])
  flat = wide.reshape(*batch, length * (span + length + 1))[..., :-length]
  return flat.reshape(*batch, length, span + length)                 # [..., T, W+T]


class SpanAttention(nnx.Module):
  """Each position attends to the W positions before it, not to itself (arXiv:1905.07799, without adaption).

  Scores are (q k + q pe) / sqrt(P). A position of the window that is before the row, or of another
  packed sequence, counts as a zero vector. Its key and value are 0, as in an empty cache. So the first token
  has a softmax too, and packed rows give the numbers of separate rows.

  Args:
    d_model, num_heads, head_dim: D, H and P.
    dropout_rate: of attention probabilities, per element, in training only.
    init_scale: s of the variance s / fan_in, uniform; 1/3 is U(-1, 1) / sqrt(fan_in).
  """

  undecodable = "it keeps no cache of keys and values; nearest: model.name='lm'"

  def __init__(self, d_model: int, *, num_heads, head_dim, dropout_rate=0.0, init_scale=1 / 3, rngs):
    init = nnx.initializers.variance_scaling(init_scale, 'fan_in', 'uniform')
    width = num_heads * head_dim
    self.wq, self.wk, self.wv = (
        axes.param(init, (d_model, width), 'embed', 'joined_kv', rngs=rngs) for _ in range(3))
    self.wo = axes.param(init, (width, d_model), 'joined_kv', 'embed', rngs=rngs)
    self.head_dim = head_dim
    self.dropout_rate = dropout_rate

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], None, carry) for x [B,T,D]; `ctx.visible` is a `Visible` of this file."""
    past = ctx.visible
    if not hasattr(past, 'pe'):
      raise UserError('attention span_attention needs a table of positions that only one model has; nearest: '
                      "model.name='span_lm'")
    span, before = past.pe.shape[1], past.segments
    source = x
    if past.history is not None:
      history = past.history[:, -span:].astype(x.dtype)              # [B, N, D]
      source = jnp.concatenate([history, x], axis=1)                 # [B, N+T, D]
      before = jnp.pad(before, ((0, 0), (history.shape[1], 0)), mode='edge')
    same = (past.segments[:, :, None] == before[:, None, :])[:, None]              # [B, 1, T, N+T]
    missing = span + x.shape[1] - source.shape[1]
    q = self._heads(x, self.wq)                                      # [B, H, T, P]
    k, v = self._heads(source, self.wk), self._heads(source, self.wv)
    content = jnp.where(same, jnp.einsum('bhtp,bhkp->bhtk', q, k), 0)
    content = to_window(jnp.pad(content, ((0, 0), (0, 0), (0, 0), (missing, 0))), span)   # [B, H, T, W]
    position = jnp.einsum('bhtp,pw->bhtw', q, past.pe.astype(q.dtype))
    scores = (content + position).astype(jnp.float32) * self.head_dim ** -0.5
    probs = noise.dropout(jax.nn.softmax(scores, axis=-1), self.dropout_rate, ctx.key if ctx.train else None)
    probs = from_window(probs)[..., missing:].astype(x.dtype)        # [B, H, T, N+T]
    y = jnp.einsum('bhtk,bhkp->bthp', jnp.where(same, probs, 0), v)  # [B, T, H, P]
    return linear.apply(y.reshape(*x.shape[:2], -1), self.wo), None, carry           # [B, T, D]

  def _heads(self, x, w):
    y = linear.apply(x, w).reshape(*x.shape[:2], -1, self.head_dim)
    return y.swapaxes(1, 2)                                          # [B, H, T, P]
