"""SMILE: a node by one router, then an expert of that node by a second one (arXiv:2212.05191)."""

import math

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import errors
from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import losses
from stmoe.core import metrics
from stmoe.core.units import counting
from stmoe.errors import UserError


def smile(logits: jax.Array, mask: jax.Array, nodes: int, node_capacity: int, capacity: int, *,
          tokens: jax.Array | None = None, choose: contract.Choose | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): token s to node i* = argmax p, expert j* = argmax q of that node, weight p q.

  The softmax of `logits` is the flat router p (x) q. Tokens come in their order, at the node first: what is
  dropped at the expert keeps its place at the node. Both balance losses count tokens before any drop.

  Args:
    logits: f32[G,S,E]: of node i, expert j, that of the node plus the log of q_j. Expert i m + j.
    mask:   bool[G,S] real tokens; padding goes nowhere.
    nodes:  n, of m = E / n experts each.
    node_capacity, capacity: places of a node and of an expert.
    tokens: divisor of the losses, see `losses.token_mean`.
    choose: how experts are chosen instead, see `contract.OFFERS`.
  """
  both = logits.reshape(*logits.shape[:2], nodes, -1)                # [G, S, n, m]
  p = jax.nn.softmax(jax.nn.logsumexp(both, axis=-1), axis=-1)       # [G, S, n]
  q = jax.nn.softmax(both, axis=-1)                                  # [G, S, n, m]
  flat = (p[..., None] * q).reshape(logits.shape)                    # [G, S, E]
  if choose:
    choice = choose(flat, 1)                                         # [G, S, 1]
  else:
    node = choices.top(p, 1)
    choice = node * q.shape[-1] + choices.top(of_node(q, node), 1)
  node, local = jnp.divmod(choice, q.shape[-1])
  edges = assignment.from_choices(choice, choices.values(flat, choice), logits.shape[-1])
  edges = assignment.kill_padding(edges, mask)
  a = assignment.cap(within_nodes(edges, nodes, node_capacity), capacity)
  return a, contract.Aux(
      losses=dict(node_balance=losses.balance(p, node, mask, tokens),
                  local_balance=losses.balance(of_node(q, node), local, mask, tokens)),
      load=metrics.load(edges),
      metrics=metrics.routing(logits, flat, edges, a, mask, tokens))


def of_node(q: jax.Array, node: jax.Array) -> jax.Array:
  """Returns f32[G,S,m], the q f32[G,S,n,m] of each token's `node` i32[G,S,1]."""
  return jnp.sum(jnp.where(jax.nn.one_hot(node[..., 0], q.shape[-2], dtype=bool)[..., None], q, 0), axis=-2)


def within_nodes(edges: assignment.Edges, nodes: int, capacity: int) -> assignment.Edges:
  """Returns `edges` [G,N] with those after the first `capacity` of their node dead."""
  node = jnp.where(assignment.live(edges), edges.expert * nodes // edges.num_experts, nodes)
  return assignment.kill(edges, counting.rank_in_expert(node, nodes + 1) < capacity)


def product(node: jax.Array, local: jax.Array, num_experts: int) -> jax.Array:
  """Returns f32[G,S,E], logits of p (x) q, for those of nodes f32[G,S,n] and local ones f32[G,S,m or E]."""
  local = local.reshape(*node.shape[:2], -1, num_experts // node.shape[-1])        # [G, S, 1 or n, m]
  return (node[..., None] + jax.nn.log_softmax(local, axis=-1)).reshape(*node.shape[:2], num_experts)


class Smile(nnx.Module):
  """Bi-level routing (arXiv:2212.05191): top-1 of nodes, then top-1 of the node's experts.

  With the executor `hops` and mesh.rules='expert=data+expert' the nodes are those of the mesh.

  Args:
    nodes:           n, which divides num_experts; None = the largest one up to the root of num_experts.
    intra_shared:    one second router for all nodes (paper; unverified), or one of each node.
    capacity_factor: (train, eval) places per token, at a node and again at an expert; None = no drops.
    min_capacity:    least places.
  Losses: node_balance, local_balance (each 1 at balance; the paper adds them up, coefficients unverified).
  Differs: the paper's text is not at hand. That gates are products, that both levels have one capacity
    factor, rounded up, and that the second router is shared are completions of it.
  """

  k = 1                              # choices of a token

  def __init__(self, d_model: int, *, num_experts: ranges.Count, nodes: ranges.Count | None = None,
               intra_shared: ranges.Flag = True, capacity_factor: ranges.Factors = (2.0, 2.0),
               min_capacity: ranges.Natural = 4, rngs):
    legal = errors.divisors(num_experts)
    nodes = max(n for n in legal if n * n <= num_experts) if nodes is None else nodes
    if nodes not in legal:
      raise UserError(f'router smile: nodes={nodes} does not divide num_experts={num_experts}; nearest: '
                      f'{errors.around(nodes, legal)}')
    self.inter = gate.weights(d_model, nodes, rngs=rngs)
    self.intra = gate.weights(d_model, num_experts // nodes if intra_shared else num_experts, rngs=rngs)
    self.num_experts = num_experts
    self.nodes = nodes
    self.capacity_factor = tuple(capacity_factor)
    self.min_capacity = min_capacity

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,E] for x [G,S,D], those of the flat router p (x) q."""
    node, local = gate.logits(x, self.inter[...]), gate.logits(x, self.intra[...])
    return product(node, local, self.num_experts)

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; see `contract.OFFERS`."""
    places = [assignment.slots(ctx, number, self.capacity_factor, self.min_capacity, math.ceil)
              for number in (self.nodes, self.num_experts)]
    a, aux = smile(logits, ctx.mask, self.nodes, *places, tokens=ctx.tokens, choose=choose)
    return contract.Routed(a, aux, carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
