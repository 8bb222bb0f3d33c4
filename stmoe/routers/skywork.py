"""Skywork-MoE: normalised router logits, and a balance coefficient per layer that follows its drops
(arXiv:2406.06563)."""

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
from stmoe.errors import UserError

EPSILON = 1e-6                                                       # least standard deviation


def standardize(logits: jax.Array, scale: float) -> jax.Array:
  """Returns logits f32[G,S,E] over experts with zero mean and standard deviation `scale`.

  The softmax of such logits cannot go flat: one logit is always above the other logits. The deviation is the
  unbiased one (over E - 1), as in the code of MoE++; the report does not say which. Equal logits give 0.
  """
  centred = logits - logits.mean(axis=-1, keepdims=True)
  variance = jnp.sum(jnp.square(centred), axis=-1, keepdims=True) / (logits.shape[-1] - 1)
  return scale * centred * jax.lax.rsqrt(variance + EPSILON ** 2)    # inside: the root of 0 has no gradient


def skywork(logits: jax.Array, alpha: jax.Array, mask: jax.Array, capacity: int, k: int, *,
            scale: float | None = 1.0, limit: int | None = None, tokens: jax.Array | None = None,
            choose: contract.Choose | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): top-k of a softmax of standardised logits, gates over their sum.

  Args:
    logits:   f32[G,S,E]; mask: bool[G,S]; tokens: see `losses.token_mean`.
    alpha:    f32[] coefficient of this layer's balance loss.
    capacity: C, slots that an expert has.
    scale:    lambda; None = logits as they are.
    limit:    slots that count for the drop rate which moves alpha; None = C.
    choose:   how experts are chosen instead, see `contract.OFFERS`.
  """
  if scale is not None:
    logits = standardize(logits, scale)
  probs = jax.nn.softmax(logits, axis=-1)                            # [G, S, E]
  choice = (choose or choices.top)(probs, k)                         # [G, S, k]
  gates = choices.values(probs, choice)
  gates = choices.normalize(gates) if k > 1 else gates
  edges = assignment.kill_padding(assignment.from_choices(choice, gates, probs.shape[-1]), mask)
  a = assignment.cap(edges, capacity)
  balance = losses.balance(probs, choice[..., :1], mask, tokens)
  limited = assignment.cap(edges, capacity if limit is None else limit)
  wanted, kept = (assignment.live(e).sum(dtype=jnp.float32) for e in (edges, limited))
  overflow = contract.mean(wanted - kept, wanted)
  return a, contract.Aux(
      losses=dict(balance=balance, adaptive_balance=jax.lax.stop_gradient(alpha) * balance),
      load=metrics.load(edges),
      metrics=dict(metrics.routing(logits, probs, edges, a, mask, tokens), alpha=alpha,
                   overflow_frac=overflow.value),
      statistics=dict(overflow=overflow))


class Skywork(nnx.Module):
  """Top-k with logit normalisation and adaptive auxiliary coefficients (arXiv:2406.06563).

  Weigh `adaptive_balance` with (1.0, 'sum'): the coefficient alpha of each layer is in it already. Or weigh
  `balance` with a constant, as the report's baseline does.

  Args:
    k:               choices per token.
    scale:           lambda, standard deviation of a token's logits; None = no normalisation.
    capacity_factor: (train, eval) slots per token, for all its choices; None = nothing is dropped.
    min_capacity:    least slots of an expert.
    dropless:        nothing is dropped; what the capacity would have dropped moves alpha.
    xi, alpha_max, beta: after a step with drop rate d, alpha <- beta alpha + (1 - beta) min(xi d, alpha_max).
    alpha_start:     alpha before the first step; None = alpha_max (not stated in the report; it is
      forgotten in 1 / (1 - beta) steps).
  Losses: balance, adaptive_balance.
  State: alpha f32[].
  Differs: the report leaves three things open: whether gates are renormalised (here, as in the code of
    MoE++, they are), which deviation normalises (see `standardize`), and the capacity factor.
  """

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k: ranges.Count = 2,
               scale: ranges.Positive | None = 1.0, capacity_factor: ranges.Factors = (2.5, 4.0),
               min_capacity: ranges.Natural = 4, dropless: ranges.Flag = False, xi: ranges.NonNegative = 0.2,
               alpha_max: ranges.NonNegative = 0.01, beta: ranges.Share = 0.99,
               alpha_start: ranges.NonNegative | None = None, rngs):
    choices.check_groups('skywork', num_experts, k, 1, 1)
    if num_experts < 2:
      raise UserError('router skywork: num_experts=1 has no deviation of logits to normalise; nearest: 2')
    self.w = gate.weights(d_model, num_experts, rngs=rngs)
    self.b = axes.param(nnx.initializers.zeros, (num_experts,), 'unmodeled', rngs=rngs)
    self.alpha = axes.state(jnp.float32(alpha_max if alpha_start is None else alpha_start))
    self.num_experts = num_experts
    self.k = k
    self.normalize_gates = k > 1
    self.scale = scale
    self.capacity_factor = tuple(capacity_factor)
    self.min_capacity = min_capacity
    self.dropless = dropless
    self.xi = xi
    self.alpha_max = alpha_max
    self.beta = beta

  def commit(self, aux: contract.Aux) -> None:
    """Moves alpha by the drop rate of one optimizer step, the statistic overflow f32[]."""
    target = jnp.minimum(self.xi * aux.statistics['overflow'].value, self.alpha_max)
    self.alpha[...] = self.beta * self.alpha[...] + (1 - self.beta) * target

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,E] for x [G,S,D], standardised."""
    logits = gate.logits(x, self.w[...])
    logits = logits + self.b[...]
    return logits if self.scale is None else standardize(logits, self.scale)

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; see `contract.OFFERS`."""
    capacity = assignment.slots(ctx, self.num_experts, self.capacity_factor, self.min_capacity)
    slots = logits.shape[1] if self.dropless else capacity
    a, aux = skywork(logits, self.alpha[...], ctx.mask, slots, self.k, scale=None, limit=capacity,
                     tokens=ctx.tokens, choose=choose)
    return contract.Routed(a, aux, carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
