"""Attention that leaves its matrix to the router of its block, as a graph of tokens (arXiv:2505.00792; all
formulas unverified: they are this project's reading of descriptions of the paper)."""

import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.attention import attention
from stmoe.core import balance
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.parts import rotary
from stmoe.routers import graph_of_tokens as router


def graph(weights: jax.Array, v: jax.Array, rows: jax.Array, sigma: float) -> tuple[jax.Array, jax.Array]:
  """Returns (graph f32[B,T,K] whose rows sum to 1, head i32[B,T] that it is made of), without gradient.

  Head h* has the least entropy, a mean over rows of its matrix A. The graph is A_h*ij exp(-|u_i - v_j|^2 /
  (2 sigma^2)) over its sum, with u_i = sum_j A_h*ij v_j: the posterior of j if outputs are values with noise.

  Args:
    weights: f32[B,H,T,K], A after the softmax; v: f32[B,K,H,P] values.
    rows:    bool[B,T,T], over the rows of which tokens the entropy of token i's head is a mean.
  """
  weights, v = jax.lax.stop_gradient((weights, v))
  logs = jnp.log(jnp.where(weights > 0, weights, 1))                 # 0 log 0 = 0
  entropy = -jnp.sum(weights * logs, axis=-1)                        # [B, H, T]
  count = jnp.maximum(rows.sum(axis=-1), 1)[:, None]                 # [B, 1, T]
  mean = jnp.einsum('bij,bhj->bhi', rows.astype(jnp.float32), entropy, precision='highest') / count
  head = jnp.argmin(mean, axis=1)                                    # [B, T]
  u = jnp.einsum('bhtk,bkhp->bhtp', weights, v, precision='highest')
  # |u - v|^2 but for |u|^2, which is the same for all keys.
  apart = jnp.sum(jnp.square(v), axis=-1).swapaxes(1, 2)[:, :, None] - 2 * jnp.einsum(
      'bhtp,bkhp->bhtk', u, v, precision='highest')                  # [B, H, T, K]
  logs = jnp.where(weights > 0, logs - apart / (2 * sigma ** 2), -jnp.inf)
  posterior = jax.nn.softmax(logs, axis=-1)                          # every row sees a key
  chosen = jax.nn.one_hot(head, weights.shape[1], axis=1)            # [B, H, T]
  return jnp.sum(posterior * chosen[..., None], axis=1), head


class GraphOfTokens(attention.Attention):
  """Multi-head attention that puts f32[B,T,T] in the carry, for router graph_of_tokens with by='attention'.

  Args:
    sigma:  standard deviation of the noise of `graph` (the paper's is not known).
    head:   whose mean entropy chooses the head: of all rows of a 'sequence', or of those up to token i,
      'earlier', which is causal.
    allow_causal: accept head='sequence' in a causal stack, where later tokens choose an earlier one's head.
    num_heads, head_dim, num_kv_heads, scaled, dropout_rate, init_scale: see `attention.Attention`.
  """

  def __init__(self, d_model: int, *, num_heads, head_dim, num_kv_heads=None, scaled: ranges.Flag = True,
               sigma: ranges.Positive = 1.0, head: ranges.Choice('sequence', 'earlier') = 'sequence',
               allow_causal: ranges.Flag = False, dropout_rate=0.0, init_scale=1.0, rngs):
    super().__init__(d_model, num_heads=num_heads, head_dim=head_dim, num_kv_heads=num_kv_heads,
                     scaled=scaled, dropout_rate=dropout_rate, init_scale=init_scale, rngs=rngs)
    self.sigma = sigma
    self.head = head
    self.allow_causal = allow_causal

  def init_carry(self, x: jax.Array) -> dict[str, jax.Array]:
    """Returns the graph of no attention, zeros f32[B,T,T]."""
    return {router.GRAPH: jnp.zeros((*x.shape[:2], x.shape[1]), jnp.float32)}

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], None, carry) for x [B,T,D]; raises UserError for a head that leaks.

    With a cache, in decoding, the graph stays what it was.
    """
    if self.head == 'sequence' and ctx.causal and not self.allow_causal:
      raise UserError("attention graph_of_tokens: head='sequence' lets later tokens choose the head in a "
                      "causal stack; nearest: head='earlier' (or allow_causal=True)")
    y, aux, carry = super().__call__(x, ctx, carry)
    if contract.CACHE in carry:
      return y, aux, carry
    weights, v = self._matrix(x, ctx)
    sequence = balance.sequences(ctx.segments, ctx.positions)        # [B, T]
    rows = (sequence[:, :, None] == sequence[:, None, :]) & ctx.mask[:, None, :]
    rows = rows & jnp.tril(jnp.ones(rows.shape[1:], bool)) if self.head == 'earlier' else rows
    return y, aux, carry | {router.GRAPH: graph(weights, v, rows, self.sigma)[0]}

  def _matrix(self, x, ctx):
    """(A f32[B,H,T,T], v f32[B,T,H,P]) of the attention of x [B,T,D]."""
    seen = ctx.visible
    q, (k, v) = self._heads(x, self.wq, self.bq, self.q_norm), self._keys(x, seen.turn)
    q = q if seen.turn is None else rotary.rotate(q, seen.turn)
    k, v = (jnp.repeat(a, q.shape[2] // a.shape[2], axis=2).astype(jnp.float32) for a in (k, v))
    logits = jnp.einsum('bthp,bkhp->bhtk', q.astype(jnp.float32), k) * self.scale
    logits = logits if seen.bias is None else logits + seen.bias
    return jax.nn.softmax(jnp.where(seen.mask, logits, -1e30), axis=-1), v
