"""Multi-head attention."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import errors
from stmoe import ranges
from stmoe.attention import recall
from stmoe.core import contract
from stmoe.core import noise
from stmoe.errors import UserError
from stmoe.parts import attend
from stmoe.parts import linear
from stmoe.parts import norm
from stmoe.parts import rotary


class Attention(nnx.Module):
  """Multi-head attention; with fewer key-value heads, grouped-query (arXiv:2305.13245).

  Args:
    d_model, num_heads: D and H.
    head_dim: width of the part of queries and keys that rotary positions turn; it comes first.
    nope_dim: width of the part that they do not turn (half of a head in GLM-4.5, arXiv:2508.06471,
      section 2.1). P = head_dim + nope_dim; H * P need not be D.
    num_kv_heads: heads of keys and values, each shared by H / num_kv_heads queries; None = H.
    scaled: divide the logits by sqrt(P). T5 does not: its query initialiser is smaller by
      that factor, so a checkpoint of one kind must never be read as the other kind.
    scale:  factor of the logits, in place of 1 / sqrt(P) or 1 (`attention_multiplier` of Granite; 1 / P in
      arXiv:2203.03466); None = as `scaled` says.
    interleaved: rotary pairs are neighbours in a head (arXiv:2104.09864, section 3.2.2; ERNIE 4.5), not its
      halves.
    dropout_rate: dropout of attention probabilities, one mask for all queries (T5).
    init_scale: s of the variance scaling.
    use_bias: with biases bq, bk, bv of the heads and bo [D], initially 0.
    qkv_bias: the same without bo (Qwen, arXiv:2309.16609).
    out_bias: bo alone.
    qk_norm:  epsilon of RMS norms of queries and keys, before they are turned; None = no norms.
    qk_norm_over: 'width', all their heads together (OLMoE, arXiv:2409.02060, section 4.1), or 'head', each
      head by itself with one scale [P] for all heads (Qwen3, arXiv:2505.09388, section 2).
    clip:     queries, keys and values are cut off at +-clip, after the norms (DBRX); None = no cut.
    sinks:    with a logit s [H] of each head, initially 0, that its softmax has beside those of the keys:
      p_j = exp(l_j) / (exp(s) + sum_k exp(l_k)). A head may so attend to nothing (gpt-oss).
  """

  def __init__(self, d_model: int, *, num_heads, head_dim, num_kv_heads=None, nope_dim: ranges.Natural = 0,
               scaled: ranges.Flag = True, scale: ranges.Positive | None = None,
               interleaved: ranges.Flag = False, dropout_rate=0.0, init_scale=1.0,
               use_bias: ranges.Flag = False, qkv_bias: ranges.Flag = False, out_bias: ranges.Flag = False,
               qk_norm: ranges.PartOf1 | None = None, qk_norm_over: ranges.Choice('width', 'head') = 'width',
               clip: ranges.Positive | None = None, sinks: ranges.Flag = False, rngs):
    num_kv_heads = num_kv_heads or num_heads
    if num_heads % num_kv_heads:
      near = ', '.join(map(str, errors.divisors(num_heads)))
      raise UserError(f'num_kv_heads {num_kv_heads} does not divide num_heads {num_heads}; possible: {near}')

    def matrix(rows, columns, names, scale=init_scale):
      init = nnx.initializers.variance_scaling(scale, 'fan_in', 'normal')
      return axes.param(init, (rows, columns), *names, rngs=rngs)

    inward, outward, width = ('embed', 'joined_kv'), ('joined_kv', 'embed'), head_dim + nope_dim
    self.wq = matrix(d_model, num_heads * width, inward, init_scale if scaled else init_scale / width)
    self.wk = matrix(d_model, num_kv_heads * width, inward)
    self.wv = matrix(d_model, num_kv_heads * width, inward)
    self.wo = matrix(num_heads * width, d_model, outward)
    bias = lambda w: axes.param(nnx.initializers.zeros, w.shape[1:], w.get_metadata()['out_sharding'][1],
                                rngs=rngs)
    biased = use_bias or qkv_bias
    self.bq, self.bk, self.bv = (bias(w) if biased else None for w in (self.wq, self.wk, self.wv))
    self.bo = bias(self.wo) if use_bias or out_bias else None
    normed = lambda w: (w.shape[1], 'embed') if qk_norm_over == 'width' else (width, 'kv')
    self.q_norm, self.k_norm = (_norm(*normed(w), qk_norm, rngs) for w in (self.wq, self.wk))
    self.sinks = axes.param(nnx.initializers.zeros, (num_heads,), 'heads', rngs=rngs) if sinks else None
    self.clip = clip
    self.head_dim = head_dim
    self.width = width
    self.scale = scale or (width ** -0.5 if scaled else 1.0)
    self.interleaved = interleaved
    self.turn = rotary.rotate_neighbours if interleaved else rotary.rotate
    self.dropout_rate = dropout_rate

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], None, carry) for x [B,T,D], which sees what `ctx.visible` says.

    A cache in `carry`, a dict of k and v, is extended at visible.slot. Without a slot, k and v are what was
    remembered of a memory.
    """
    seen, cache = ctx.visible, carry.get(contract.CACHE)
    if cache is not None and seen.slot is None:
      return self._recall(x, seen, cache), None, carry
    source = x if seen.memory is None else seen.memory               # [B, K, D]
    k, v = self._keys(source, seen.turn)                             # [B, K, H, P]
    if cache is not None:
      cache = recall.extended(cache, k, v, seen.slot)
      return self._recall(x, seen, cache), None, contract.joined(carry, cache)
    # For all queries T5 draws one mask of probabilities per batch, head and key. That is to
    # drop whole value vectors: sum_j (p_ij m_j) v_j = sum_j p_ij (m_j v_j).
    v = noise.dropout(v, self.dropout_rate, ctx.key if ctx.train else None, broadcast_dims=(-1,))
    return self._attend(x, seen, k, v), None, carry

  def init_cache(self, batch: int, length: int, dtype: jax.typing.DTypeLike) -> dict[str, jax.Array]:
    """Returns an empty cache of `length` places: dict of k and v [B,H,K,P], turned already."""
    return recall.empty(batch, self.wk.shape[-1] // self.width, length, self.width, dtype)

  def remember(self, memory: jax.Array) -> dict[str, jax.Array]:
    """Returns k and v [B,H,K,P] of cross-attention to memory [B,K,D], computed once: a dict."""
    return recall.kept(*self._keys(memory, None))

  def _keys(self, source, turn):
    k, v = self._heads(source, self.wk, self.bk, self.k_norm), self._heads(source, self.wv, self.bv)
    return (k if turn is None else self.turn(k, turn)), v

  def _attend(self, x, visible, k, v):
    """[B,T,D] of x [B,T,D] attending to k and v [B,K,H,P]."""
    mask, bias = visible.mask, visible.bias
    if self.sinks is not None:
      k, v, mask, bias = _with_sinks(self.sinks[...], k, v, mask, bias)
    y = attend.attend(self._queries(x, visible), k, v, mask=mask, bias=bias, scale=self.scale,
                      causal=visible.causal)
    return linear.apply(y.reshape(*x.shape[:2], -1), self.wo, self.bo)

  def _recall(self, x, visible, cache):
    """[B,T,D] of x [B,T,D] attending to a cache; the queries of a prompt turn it, a token's does not."""
    if x.shape[1] > 1:
      return self._attend(x, visible, *recall.turned(**cache))
    sinks = None if self.sinks is None else self.sinks[...]
    y = recall.one(self._queries(x, visible), cache, mask=visible.mask, bias=visible.bias, scale=self.scale,
                   sinks=sinks)
    return linear.apply(y.reshape(*x.shape[:2], -1), self.wo, self.bo)

  def _queries(self, x, visible):
    q = self._heads(x, self.wq, self.bq, self.q_norm)                # [B, T, H, P]
    return q if visible.turn is None else self.turn(q, visible.turn)

  def _heads(self, x, w, b, normalize=None):
    y = linear.apply(x, w, b)                                        # [B, T, H*P]
    if normalize is not None:                                        # H heads of P, or one of H*P
      y = normalize(y.reshape(*x.shape[:2], -1, normalize.scale.shape[-1]))
    y = y if self.clip is None else jnp.clip(y, -self.clip, self.clip)
    return y.reshape(*x.shape[:2], -1, self.width)                   # [B, T, H, P]


def _with_sinks(sinks, k, v, mask, bias):
  """(k, v, mask, bias) with one more key, seen by all: 0, so that its logit is its bias, of value 0."""
  k, v = (jnp.pad(a, ((0, 0), (0, 1), (0, 0), (0, 0))) for a in (k, v))            # [B, K+1, H, P]
  bias = jnp.zeros((1, len(sinks), 1, mask.shape[-1])) if bias is None else bias
  own = jnp.broadcast_to(sinks[None, :, None, None], (*bias.shape[:3], 1))
  mask = jnp.pad(mask, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=True)
  return k, v, mask, jnp.concatenate([bias, own], axis=-1)           # [1, H, 1 or T, K+1]


def _norm(width, axis, epsilon, rngs):
  """The norm of queries or keys, or None without an epsilon."""
  return None if epsilon is None else norm.RMSNorm(width, epsilon=epsilon, axis=axis, rngs=rngs)
