"""Graph of Tokens: a token chooses by a mean of the probabilities of tokens like it, or that it attends to
(arXiv:2505.00792; unverified: the formulas are this project's reading of descriptions of the paper)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import balance
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import losses
from stmoe.core import metrics
from stmoe.core.units import probabilities
from stmoe.errors import UserError

GRAPH = 'attention_graph'              # in the carry: f32[B,T,T] of the attention of this name


def similarity(u: jax.Array, w: jax.Array, seen: jax.Array, tau: float) -> jax.Array:
  """Returns f32[G,S,S], s_ij = softmax over the tokens j that i sees of u_i W u_j / tau; 0 of all others.

  Args:
    u: f32[G,S,D]; w: f32[D,D]; seen: bool[G,S,S]. A token that sees none has zeros.
  """
  return probabilities.softmax_of(jnp.einsum('gsd,dc,gtc->gst', u, w, u, precision='highest') / tau, seen)


def mean(weights: jax.Array, probs: jax.Array) -> jax.Array:
  """Returns p~_i = sum_j s_ij p_j [G,S,E] of weights s f32[G,S,S] and probs p f32[G,S,E]."""
  return jnp.einsum('gst,gte->gse', weights, probs, precision='highest')


def graph_of_tokens(probs: jax.Array, mask: jax.Array, k: int, *, normalize_gates: bool = True,
                    tokens: jax.Array | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): each token to its k largest mean probabilities. Nothing is dropped.

  Args:
    probs:  f32[G,S,E] means over other tokens; mask: bool[G,S]; tokens: see `losses.token_mean`.
    normalize_gates: gates over their sum, which is the softmax over a token's choices.
  """
  choice = choices.top(probs, k)                                     # [G, S, k]
  gates = choices.values(probs, choice)
  gates = choices.normalize(gates) if normalize_gates else gates
  edges = assignment.kill_padding(assignment.from_choices(choice, gates, probs.shape[-1]), mask)
  a = assignment.cap(edges, edges.num_tokens)
  return a, contract.Aux(
      losses=dict(balance=losses.balance(probs, choice, mask, tokens)), load=metrics.load(edges),
      metrics=metrics.routing(probabilities.logarithm(probs), probs, edges, a, mask, tokens))


class GraphOfTokens(nnx.Module):
  """Top-k of p~_i = sum_j s_ij p_j with p_j = softmax(u_j W + b) (arXiv:2505.00792, unverified); dropless.

  A token's neighbours j are real tokens of its own sequence and routing group.

  Args:
    k:     choices per token.
    by:    'similarity': s_ij is the softmax of u_i W_s u_j / tau, W_s [D,D]; 'attention': s is the matrix
      that the attention of this name in the same block leaves in the carry.
    tau:   temperature of the similarity (the paper's is not known).
    scope: 'visible': tokens up to i in a causal stack, all in another one; 'earlier'; or 'all'.
    surer: only j whose entropy is not above that of i; then the paper bounds the entropy of p~.
    normalize_gates: the gates of a token over their sum; else the mean probabilities.
    allow_causal: accept scope='all' in a causal stack, where it shows a token later ones.
  Losses: balance.
  Metrics: plain_entropy, that of p, beside router_entropy, that of p~.
  """

  undecodable = ("it averages over a text's earlier tokens, whose probabilities no cache has; nearest: "
                 "router.name='smoe'")

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k: ranges.Count = 2,
               by: ranges.Choice('similarity', 'attention') = 'similarity', tau: ranges.Positive = 1.0,
               scope: ranges.Choice('visible', 'earlier', 'all') = 'visible', surer: ranges.Flag = False,
               normalize_gates: ranges.Flag = True, allow_causal: ranges.Flag = False, rngs):
    choices.check_k('graph_of_tokens', k, num_experts)
    self.w = gate.weights(d_model, num_experts, rngs=rngs)
    self.b = axes.param(nnx.initializers.zeros, (num_experts,), 'unmodeled', rngs=rngs)
    self.similar = (axes.param(gate.INIT, (d_model, d_model), 'embed', 'unmodeled', rngs=rngs)
                    if by == 'similarity' else None)
    self.num_experts = num_experts
    self.k = k
    self.tau = tau
    self.scope = scope
    self.surer = surer
    self.normalize_gates = normalize_gates
    self.allow_causal = allow_causal

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]; raises UserError for a scope that leaks, or without a graph."""
    u = x.astype(jnp.float32)
    plain = jax.nn.softmax(gate.logits(u, self.w[...]) + self.b[...], axis=-1)       # p [G, S, E]
    probs = mean(self._weights(u, self._seen(plain, ctx), carry), jnp.where(ctx.mask[..., None], plain, 0))
    a, aux = graph_of_tokens(probs, ctx.mask, self.k, normalize_gates=self.normalize_gates, tokens=ctx.tokens)
    entropy = metrics.entropy(jax.lax.stop_gradient(plain), ctx.mask, ctx.tokens)
    return contract.Routed(a, aux.replace(metrics=aux.metrics | dict(plain_entropy=entropy)), carry)

  def products_per_row(self, size: int) -> int:
    """Returns how many numbers a token [D] of a group of `size` is multiplied by, u and p of others too."""
    return (self.w.shape[-2] + size) * (self.num_experts + (0 if self.similar is None else self.w.shape[-2]))

  def _weights(self, u, seen, carry):
    """f32[G,S,S], rows that sum to 1."""
    if self.similar is not None:
      return similarity(u, self.similar[...], seen, self.tau)
    if GRAPH not in carry:
      raise UserError("router graph_of_tokens: by='attention', but the block's attention leaves no graph; "
                      "nearest: attention=dict(name='graph_of_tokens') in the block, or by='similarity'")
    if carry[GRAPH].shape != seen.shape:
      raise UserError(f"router graph_of_tokens: by='attention' needs groups of whole sequences, not of "
                      f'{seen.shape[1]} tokens; nearest: group_size=None')
    graph = jnp.where(seen, carry[GRAPH], 0)
    return graph / jnp.maximum(graph.sum(axis=-1, keepdims=True), 1e-9)

  def _seen(self, plain, ctx):
    """bool[G,S,S], whether j is a neighbour of i."""
    if self.scope == 'all' and ctx.causal and not self.allow_causal:
      raise UserError("router graph_of_tokens: scope='all' shows a token later ones in a causal stack; "
                      "nearest: scope='visible' (or allow_causal=True)")
    seen = balance.neighbours(ctx.segments, ctx.positions, ctx.mask)               # [G, S, S]
    if self.scope == 'earlier' or self.scope == 'visible' and ctx.causal:
      seen &= jnp.tril(jnp.ones(seen.shape[1:], bool))
    if self.surer:
      sureness = jnp.sum(plain * probabilities.logarithm(plain), axis=-1)          # minus entropy [G, S]
      seen &= sureness[:, None, :] >= sureness[:, :, None]
    return seen
