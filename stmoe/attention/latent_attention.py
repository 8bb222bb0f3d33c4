"""Multi-head latent attention: keys and values from one compressed vector (DeepSeek-V2, arXiv:2405.04434)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import contract
from stmoe.core import noise
from stmoe.errors import UserError
from stmoe.parts import cache as caches
from stmoe.parts import linear
from stmoe.parts import norm
from stmoe.parts import rotary


class LatentAttention(nnx.Module):
  """Attention whose keys and values are functions of a vector of width `kv_rank` (section 2.1).

  For later tokens a token leaves its compressed vector c [R] and a turned key [P] that all heads share:
  k_h = [W_h^K c, turned key], v_h = W_h^V c. Queries are compressed too, where they have a rank.

  Args:
    d_model, num_heads: D and H.
    head_dim:    P, width of the part of queries and keys that rotary positions turn.
    nope_dim:    width of the part that rotary positions do not turn.
    value_dim:   width of a head's values.
    kv_rank:     R.
    q_rank: of the queries, None = not compressed.
    norm_epsilon: of the norms of compressed vectors.
    interleaved: rotary pairs are neighbours, as in the released checkpoints, not halves.
    logit_scale: factor of the logits beside 1/sqrt(nope_dim + P) (YaRN, arXiv:2309.00071, section 3.4).
    use_bias:    with biases of both compressions and of the output (`attention_bias` of config.json),
      initially 0.
    dropout_rate, init_scale: see `attention.Attention`.
  """

  def __init__(self, d_model: int, *, num_heads, head_dim, nope_dim: ranges.Count, value_dim: ranges.Count,
               kv_rank: ranges.Count, q_rank: ranges.Count | None = None, norm_epsilon: ranges.PartOf1 = 1e-6,
               interleaved: ranges.Flag = True, logit_scale: ranges.Any = 1.0, use_bias: ranges.Flag = False,
               dropout_rate=0.0, init_scale=1.0, rngs):
    init = nnx.initializers.variance_scaling(init_scale, 'fan_in', 'normal')
    matrix = lambda rows, columns, *names: axes.param(init, (rows, columns), *names, rngs=rngs)
    queries = num_heads * (nope_dim + head_dim)
    if q_rank is None:
      self.wq_down = self.q_norm = None
    else:
      self.wq_down = matrix(d_model, q_rank, 'embed', 'kv')
      self.q_norm = norm.RMSNorm(q_rank, epsilon=norm_epsilon, rngs=rngs)
    self.wq = matrix(q_rank or d_model, queries, 'kv' if q_rank else 'embed', 'joined_kv')
    self.wkv_down = matrix(d_model, kv_rank + head_dim, 'embed', 'kv')
    self.kv_norm = norm.RMSNorm(kv_rank, epsilon=norm_epsilon, rngs=rngs)
    self.wkv = matrix(kv_rank, num_heads * (nope_dim + value_dim), 'kv', 'joined_kv')
    self.wo = matrix(num_heads * value_dim, d_model, 'joined_kv', 'embed')
    bias = lambda w: None if w is None or not use_bias else axes.param(
        nnx.initializers.zeros, w.shape[1:], w.get_metadata()['out_sharding'][1], rngs=rngs)
    self.bq_down, self.bkv_down, self.bo = map(bias, (self.wq_down, self.wkv_down, self.wo))
    self.num_heads = num_heads
    self.head_dim = head_dim
    self.nope_dim = nope_dim
    self.kv_rank = kv_rank
    self.scale = logit_scale * (nope_dim + head_dim) ** -0.5
    self.turn = rotary.rotate_neighbours if interleaved else rotary.rotate
    self.dropout_rate = dropout_rate

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], None, carry) for x [B,T,D]; a cache in `carry` is extended at visible.slot."""
    seen, cache = ctx.visible, carry.get(contract.CACHE)
    if seen.turn is None:
      raise UserError('attention latent_attention turns its queries and keys by positions, which this model '
                      "does not; nearest: model.name='lm', attention name='attention'")
    q = self.queries(x, seen.turn)                                   # [B, T, H, nope + P]
    latent, shared = self.compress(x, seen.turn)                     # [B, K, R], [B, K, P]
    if cache is not None:
      cache = caches.extended(cache, dict(latent=latent, shared=shared), seen.slot)
      return self.attend(q, **cache, mask=seen.mask), None, contract.joined(carry, cache)
    return self.attend(q, latent, shared, seen.mask, ctx.key if ctx.train else None), None, carry

  def init_cache(self, batch: int, length: int, dtype: jax.typing.DTypeLike) -> dict[str, jax.Array]:
    """Returns an empty cache of `length` places: latent [B,K,R] and shared [B,K,P], turned already."""
    return dict(latent=jnp.zeros((batch, length, self.kv_rank), dtype),
                shared=jnp.zeros((batch, length, self.head_dim), dtype))

  def queries(self, x: jax.Array, turn: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Returns q [B,T,H,nope+P] of x [B,T,D], the last P turned by `turn`."""
    if self.wq_down is not None and self.q_norm is not None:
      x = self.q_norm(linear.apply(x, self.wq_down, self.bq_down))   # [B, T, q_rank]
    q = linear.apply(x, self.wq).reshape(*x.shape[:2], self.num_heads, -1)
    still, turned = q[..., :self.nope_dim], q[..., self.nope_dim:]
    return jnp.concatenate([still, self.turn(turned, turn)], axis=-1)

  def compress(self, x: jax.Array, turn: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Returns what later tokens need of x [B,T,D]: c [B,T,R], normalised, and the turned key [B,T,P]."""
    y = linear.apply(x, self.wkv_down, self.bkv_down)                # [B, T, R + P]
    latent, shared = y[..., :self.kv_rank], y[..., self.kv_rank:]
    return self.kv_norm(latent), self.turn(shared[..., None, :], turn)[..., 0, :]

  def attend(self, q: jax.Array, latent: jax.Array, shared: jax.Array, mask: jax.Array,
             key: jax.Array | None = None) -> jax.Array:
    """Returns [B,T,D] of q [B,T,H,nope+P] over latent [B,K,R] and shared [B,K,P]; mask [B,1,T,K]."""
    up = linear.apply(latent.astype(q.dtype), self.wkv).reshape(*latent.shape[:2], self.num_heads, -1)
    k, v = up[..., :self.nope_dim], up[..., self.nope_dim:]          # [B, K, H, .]
    shared = jnp.broadcast_to(shared[:, :, None], (*k.shape[:3], shared.shape[-1]))
    k = jnp.concatenate([k, shared], axis=-1)                        # [B, K, H, nope + P]
    v = noise.dropout(v, self.dropout_rate, key, broadcast_dims=(-1,))
    logits = jnp.einsum('bthp,bkhp->bhtk', q, k, preferred_element_type=jnp.float32) * self.scale
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    y = jnp.einsum('bhtk,bkhv->bthv', jax.nn.softmax(logits, axis=-1).astype(q.dtype), v)
    return linear.apply(y.reshape(*y.shape[:2], -1), self.wo, self.bo)
