"""ReMoE: an expert runs where its logit is positive; a growing loss holds k of them (arXiv:2412.14711)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import losses
from stmoe.core import metrics

LEAST = 1.2e-38                                                      # of float32, so that it can grow again


def remoe(logits: jax.Array, coefficient: jax.Array | float, mask: jax.Array, k: int,
          tokens: jax.Array | None = None, choose: contract.Choose | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): token s to every expert with a positive logit, weighted by the logit.

  The gates R = ReLU(z) are not normalised. The loss `sparsity` is lambda E / (k T^2) sum_e (sum_t R_te) n_e,
  n_e the number of tokens with R_te > 0: gates of an expert that many have are pressed more. Nothing drops.

  Args:
    logits:      f32[G,S,E]; mask: bool[G,S] real tokens; tokens: see `losses.token_mean`.
    coefficient: lambda, f32[].
    k:           experts of a token on average that lambda is moved to; cost is counted by it.
    choose:      how experts are chosen instead, all of which run; see `contract.OFFERS`.
  """
  gates, num_experts = jax.nn.relu(logits), logits.shape[-1]         # [G, S, E]
  positive = jnp.where(gates > 0, jnp.arange(num_experts), num_experts)            # E: a dead edge
  choice = choose(logits, k) if choose else positive
  edges = assignment.from_choices(choice, choices.values(gates, choice) if choose else gates, num_experts)
  edges = assignment.kill_padding(edges, mask)
  if not choose:
    edges = assignment.expecting(edges, k * mask.shape[1])
  a = assignment.cap(edges, mask.shape[1])
  sparsity = losses.balance(gates, positive, mask, tokens) / k
  zeros = jnp.sum(gates <= 0, axis=-1, dtype=jnp.float32)            # [G, S]
  sparse = contract.mean(jnp.sum(zeros * mask), num_experts * mask.sum(dtype=jnp.float32), scope='model')
  shares = gates / jnp.maximum(gates.sum(axis=-1, keepdims=True), 1e-9)            # for the router's entropy
  numbers = metrics.routing(logits, shares, edges, a, mask, tokens)
  return a, contract.Aux(losses=dict(sparsity=jax.lax.stop_gradient(coefficient) * sparsity),
                         load=metrics.load(edges),
                         metrics=dict(numbers, sparsity=losses.token_mean(zeros / num_experts, mask, tokens),
                                      coefficient=jnp.float32(coefficient)),
                         statistics=dict(sparse=sparse))


class ReMoE(nnx.Module):
  """Fully differentiable routing by ReLU with an adaptive L1 loss (arXiv:2412.14711).

  Weigh `sparsity` with (1.0, 'sum'): lambda is in it, and layers add up. A router begins dense and becomes
  sparse in stages; the first hundred steps or so compute most experts.

  Args:
    k:          experts of a token on average, after training: 1 - k / E of the gates are to be zero.
    initial:    lambda before the first step.
    multiplier: after every step lambda is multiplied by it where the share of zeros over all tokens and all
      layers is below 1 - k / E, else divided by it.
  Losses: sparsity.
  State: coefficient f32[], lambda, the same in all layers.
  Differs: the loss is per group of tokens; lambda is kept above the least float32.
  """

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k: ranges.Count = 1,
               initial: ranges.Positive = 1e-8, multiplier: ranges.Above1 = 1.2, rngs):
    choices.check_k('remoe', k, num_experts)
    self.w = gate.weights(d_model, num_experts, rngs=rngs)
    self.coefficient = axes.state(jnp.float32(initial))
    self.num_experts = num_experts
    self.k = k
    self.multiplier = multiplier

  def commit(self, aux: contract.Aux) -> None:
    """Moves lambda by the share of zero gates of one optimizer step, the statistic sparse f32[]."""
    dense = aux.statistics['sparse'].value < 1 - self.k / self.num_experts
    moved = self.coefficient[...] * jnp.where(dense, self.multiplier, 1 / self.multiplier)
    self.coefficient[...] = jnp.maximum(moved, LEAST)

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,E] for x [G,S,D]."""
    return gate.logits(x, self.w[...])

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; see `contract.OFFERS`."""
    a, aux = remoe(logits, self.coefficient[...], ctx.mask, self.k, ctx.tokens, choose)
    return contract.Routed(a, aux, carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
