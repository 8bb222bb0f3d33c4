"""MoE++: real experts and virtual ones, of another weight in balance and capacity (arXiv:2410.07348)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import balance
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import metrics

ADDED = 'gate_added'                 # what is given: f32[G,S,E+Z], what the layer adds to the logits
SUM = 'gate_logits'                  # in the carry of a layer that asks for it: the logits with what is added


def normalize(logits: jax.Array, std: float) -> jax.Array:
  """Returns logits f32[G,S,E] times `std` over their unbiased deviation; their mean is not removed."""
  variance = jnp.var(logits, axis=-1, keepdims=True, ddof=min(1, logits.shape[-1] - 1))
  return logits * std * jax.lax.rsqrt(jnp.maximum(variance, 1e-12))  # equal logits have no deviation


def gates_of_others(probs: jax.Array, logits: jax.Array, zero: jax.Array) -> jax.Array:
  """Returns f32[G,S,k]: probs over the sum of those of no zero expert, 0 where `zero` bool[G,S,k]."""
  kept = jnp.where(zero, 0, probs)
  total = kept.sum(axis=-1, keepdims=True)
  return kept if kept.shape[-1] == 1 else kept / jnp.where(total > 0, total, 1)


def gates_of_chosen(probs: jax.Array, logits: jax.Array, zero: jax.Array) -> jax.Array:
  """Returns f32[G,S,k], the softmax of the chosen logits, zero experts included ('mixtral' in the code)."""
  return jax.nn.softmax(logits, axis=-1)


GATES = dict(others=gates_of_others, chosen=gates_of_chosen)


def moe_plus_plus(logits: jax.Array, mask: jax.Array, k: int, capacity: tuple[int, ...] | None = None,
                  *, num_virtual: int = 0, num_zero: int = 0, gates: str = 'others', tau: float = 0.75,
                  tokens: jax.Array | None = None, choose: contract.Choose | None = None
                  ) -> contract.Decision:
  """Returns (Assignment, Aux): token s to its k most probable experts, real or virtual.

  The balance loss is sum_i eta_i f_i P_i with eta = 1 of real experts and tau of virtual ones (section 3),
  f_i the share of an expert in the choices times E + Z. Cost is counted by the share that is then least.

  Args:
    logits:   f32[G,S,E+Z], Z = num_virtual; the last num_zero of them are zero experts.
    mask:     bool[G,S] real tokens; tokens: see `losses.token_mean`; choose: see `contract.OFFERS`.
    capacity: slots of each of the E + Z experts; None = nothing is dropped.
    gates:    a key of GATES.
  """
  probs, all_experts = jax.nn.softmax(logits, axis=-1), logits.shape[-1]           # [G, S, E+Z]
  num_experts, size = all_experts - num_virtual, mask.shape[1]
  choice = (choose or choices.top)(probs, k)                         # [G, S, k]
  weight = GATES[gates](choices.values(probs, choice), choices.values(logits, choice),
                        choice >= all_experts - num_zero)
  edges = assignment.kill_padding(assignment.from_choices(choice, weight, num_experts, num_virtual), mask)
  share = tau * num_experts / (tau * num_experts + num_virtual)      # of real experts, under balance
  edges = assignment.expecting(edges, choice.shape[-1] * size * share)
  a = assignment.cap(edges, capacity or size)
  found = balance.shares(probs, choice, mask)
  eta = jnp.where(jnp.arange(all_experts) < num_experts, 1.0, tau)
  return a, contract.Aux(losses=dict(balance=balance.expert_loss(found._replace(f=eta * found.f), tokens)),
                         load=metrics.load(edges),
                         metrics=metrics.routing(logits, probs, edges, a, mask, tokens))


class MoEPlusPlus(nnx.Module):
  """The router of MoE++ (arXiv:2410.07348); its experts' input and gating residual: layer moe_plus_plus.

  Args:
    k:               choices per token.
    two_layers:      logits tanh(x A) B with A [D,8(E+Z)], else x B.
    logit_std:       standard deviation that a token's logits are scaled to; None = as they are.
    gates:           'others': over their sum, without zero experts; 'chosen': softmax of the k logits.
    tau:             smaller sends more tokens to virtual experts.
    capacity_factor: gamma, (train, eval) slots per choice: gamma tau k S / (tau E + Z) of a real expert,
      gamma k S / (tau E + Z) of a virtual one; None = nothing is dropped.
    min_capacity:    least slots of an expert.
    num_virtual, num_zero: Z, and how many of these, the last, are zero experts; from the layer.
  Losses: balance.
  Differs: the paper's capacity (unverified) has T where here is kT: with its factor 1.1 half of all choices
    would find no slot. The released code has no loss and no capacity.
  """

  normalize_gates = True

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k: ranges.Count = 2,
               two_layers: ranges.Flag = True, logit_std: ranges.Positive | None = None,
               gates: ranges.Choice(*GATES) = 'others', tau: ranges.Positive = 0.75,
               capacity_factor: ranges.Factors = (1.1, None), min_capacity: ranges.Natural = 4,
               num_virtual=0, num_zero=0, rngs):
    choices.check_k('moe_plus_plus', k, num_experts, num_virtual)
    width = num_experts + num_virtual
    hidden = 8 * width if two_layers else d_model
    self.w_in = gate.weights(d_model, hidden, rngs=rngs) if two_layers else None
    self.w = gate.weights(hidden, width, rngs=rngs)
    self.num_experts, self.num_virtual, self.num_zero = num_experts, num_virtual, num_zero
    self.k, self.logit_std, self.gates, self.tau = k, logit_std, gates, tau
    self.capacity_factor, self.min_capacity = tuple(capacity_factor), min_capacity
    # A zero expert's weight is 0, and the sum it is left out of cancels the softmax's: no other gradient.
    self.needs_loss = ('balance',) if num_zero and gates == 'others' else ()

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,E+Z] for x [G,S,D], or of what the layer gives as `gate_input` in its place."""
    x = ctx.given.get('gate_input', x)
    logits = gate.logits(x if self.w_in is None else jnp.tanh(gate.logits(x, self.w_in[...])), self.w[...])
    return logits + ctx.given[ADDED] if ADDED in ctx.given else logits

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E+Z]; see `contract.OFFERS`."""
    if SUM in carry:
      carry = carry | {SUM: logits}                                  # for the next layer
    scaled = logits if self.logit_std is None else normalize(logits, self.logit_std)
    a, aux = moe_plus_plus(scaled, ctx.mask, self.k, self.capacity(ctx), num_virtual=self.num_virtual,
                           num_zero=self.num_zero, gates=self.gates, tau=self.tau, tokens=ctx.tokens,
                           choose=choose)
    return contract.Routed(a, aux, carry)

  def capacity(self, ctx: contract.Context) -> tuple[int, ...]:
    """Returns the slots of each of the E + Z experts for groups with a mask [G,S]."""
    parts = (self.tau * self.num_experts + self.num_virtual) / self.k              # of weight 1 each
    real, virtual = (assignment.slots(ctx, parts / part, self.capacity_factor, self.min_capacity)
                     for part in (self.tau, 1))
    return (real,) * self.num_experts + (virtual,) * self.num_virtual

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
