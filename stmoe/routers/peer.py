"""PEER: a few of very many experts of one neuron, found by product keys (arXiv:2407.04153)."""

import math

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import metrics
from stmoe.errors import UserError

# Gates of the k scores f32[...,k] of a head: the paper's, and that of the released port.
GATES = dict(softmax=jax.nn.softmax, relu=jax.nn.relu)


def retrieve(query: jax.Array, keys: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """Returns (scores f32[...,k], experts i32[...,k]): the k of n^2 experts whose keys fit a query best.

  Expert i n + j has the key (c_i, c'_j), so its score is q_1 c_i + q_2 c'_j. The k best pairs are among the
  k best i and the k best j: k^2 sums are compared instead of n^2.

  Args:
    query: f32[...,2,d], two halves.
    keys:  f32[2,n,d]; k <= n.

  >>> keys = jnp.array([[[1.0], [2.0], [4.5]], [[0.0], [1.0], [3.0]]])
  >>> scores, experts = retrieve(jnp.array([[1.0], [1.0]]), keys, 2)
  >>> scores.tolist(), experts.tolist()
  ([7.5, 5.5], [8, 7])
  """
  n = keys.shape[1]
  halves = jnp.einsum('...cd,cnd->...cn', query, keys, precision='highest')        # [..., 2, n]
  best = choices.top(halves, k)                                      # [..., 2, k]
  first, second = jnp.split(choices.values(halves, best), 2, axis=-2)              # [..., 1, k] each
  sums = first.swapaxes(-1, -2) + second                             # [..., k, k]
  sums = sums.reshape(*sums.shape[:-2], k * k)
  pair = choices.top(sums, k)                                        # [..., k]
  half = lambda c, at: jnp.take_along_axis(best[..., c, :], at, axis=-1)
  return choices.values(sums, pair), half(0, pair // k) * n + half(1, pair % k)


def peer(query: jax.Array, keys: jax.Array, mask: jax.Array, k: int, gates: str = 'softmax',
         tokens: jax.Array | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): token s to the k experts of every head. Nothing is dropped.

  y = sum over heads and their k experts of sigma(score) * expert(x). Two heads may choose the same expert,
  whose weights then add up.

  Args:
    query:  f32[G,S,h,2,d], of h heads; keys: f32[2,n,d] of E = n^2 experts.
    mask:   bool[G,S] real tokens.
    gates:  a key of GATES.
    tokens: divisor of token-averaged metrics, see `losses.token_mean`.
  """
  groups, size, heads = query.shape[:3]
  scores, expert = retrieve(query, keys, k)                          # [G, S, h, k] twice
  weight, listed = GATES[gates](scores), (groups, size, heads * k)
  edges = assignment.from_choices(expert.reshape(listed), weight.reshape(listed), keys.shape[1] ** 2)
  edges = assignment.kill_padding(edges, mask)
  a = assignment.cap(edges, size * heads)
  return a, contract.Aux(losses={}, load=metrics.load(edges), metrics=dict(
      drop_frac=metrics.drop_frac(edges, a), left_behind=metrics.left_behind(a, mask, tokens),
      router_conf=jax.lax.stop_gradient(metrics.confidence(a)),
      router_logit_max=metrics.logit_max(jax.lax.stop_gradient(scores).reshape(listed), mask)))


class Peer(nnx.Module):
  """Retrieval by product keys (arXiv:2407.04153), for experts `mlp` with d_ff=1 and executor `fetch`.

  Args:
    num_experts: E = n^2.
    heads:  h, queries of a token; all heads read the same keys.
    k:      experts of a head, at most n.
    d_key:  width of a query, in two halves; even.
    gates:  'softmax' over a head's k scores (paper), or 'relu' of each (the released port).
  Losses: none.
  Differs: queries are not normalised over the batch, which is said of the paper (unverified). That the
    heads have their keys in common is our reading of "2 x sqrt(E) keys".
  """

  def __init__(self, d_model: int, *, num_experts: ranges.Count, heads: ranges.Count = 1,
               k: ranges.Count = 2, d_key: ranges.Count = 128,
               gates: ranges.Choice(*GATES) = 'softmax', rngs):
    n = math.isqrt(num_experts)
    if n * n != num_experts:
      raise UserError(f'router peer: num_experts={num_experts} is no square, and an expert is a pair of '
                      f'keys; nearest: {n * n}, {(n + 1) ** 2}')
    if k > n:
      raise UserError(f'router peer: k={k} of {n} keys in each half, num_experts={num_experts}; nearest: {n}')
    if d_key % 2:
      raise UserError(f'router peer: d_key={d_key} has no two halves; nearest: {d_key + 1}')
    choices.named(GATES, gates, 'router peer: gates')
    self.w = gate.weights(d_model, heads * d_key, rngs=rngs)
    init = nnx.initializers.normal((2 / d_key) ** 0.5)
    self.keys = axes.param(init, (2, n, d_key // 2), 'unmodeled', 'unmodeled', 'unmodeled', rngs=rngs)
    self.num_experts = num_experts
    self.heads = heads
    self.k = k
    self.gates = gates
    self.gates_sum = heads if gates == 'softmax' else None
    self.products_per_row = heads * d_key * (d_model + n)            # of queries, and of halves with keys

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    query = gate.logits(x, self.w[...])                              # [G, S, h * d_key]
    query = query.reshape(*query.shape[:2], self.heads, 2, -1)       # [G, S, h, 2, d]
    return contract.Routed(*peer(query, self.keys[...], ctx.mask, self.k, self.gates, ctx.tokens), carry)
