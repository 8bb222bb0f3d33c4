"""S-BASE: top-k of a balanced Sinkhorn plan in training, of the logits otherwise (arXiv:2202.01169)."""

import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import losses
from stmoe.core import matching
from stmoe.core import metrics
from stmoe.errors import UserError


# Gates of all experts, of logits f32[G,S,E]; not divided by the sum of the chosen ones.
GATES: dict[str, typing.Callable[[jax.Array], jax.Array]] = dict(
    sigmoid=jax.nn.sigmoid, softmax=jax.nn.softmax)


def s_base(logits: jax.Array, mask: jax.Array, capacity: int, k: int = 1, *, tokens: jax.Array | None = None,
           gates: str = 'sigmoid', balanced: bool = True, tolerance: float = 1e-4,
           iterations: int = 1000) -> contract.Decision:
  """Returns (Assignment, Aux): the k largest entries of each row of the plan, or of the logits.

  The plan only chooses. The plan is balanced, its largest entries only nearly so.

  Args:
    logits:   f32[G,S,E]; mask: bool[G,S] real tokens; capacity: C; tokens: see `losses.token_mean`.
    gates:    of a single choice, a key of GATES; those of several choices are of the softmax.
    balanced: choose from `matching.sinkhorn`'s plan (training), or from the logits (evaluation).
    tolerance, iterations: see `matching.sinkhorn`.
  """
  probs = jax.nn.softmax(logits, axis=-1)                            # [G, S, E]
  weights = GATES[gates](logits) if k == 1 else probs
  fixed = jax.lax.stop_gradient(logits)
  ranking = matching.sinkhorn(fixed, mask, tolerance, iterations) if balanced else fixed
  choice = jax.lax.top_k(ranking, k)[1]                              # [G, S, k]
  edges = assignment.from_choices(choice, choices.values(weights, choice), probs.shape[-1])
  edges = assignment.kill_padding(edges, mask)
  a = assignment.cap(edges, capacity)
  numbers = metrics.routing(logits, probs, edges, a, mask, tokens)
  first = choice[..., 0] != fixed.argmax(axis=-1)                    # [G, S]
  numbers['displaced_frac'] = losses.token_mean(first.astype(jnp.float32), mask)
  return a, contract.Aux(losses=dict(z=losses.z(logits, mask, tokens)), load=metrics.load(edges),
                         metrics=numbers)


class SBase(nnx.Module):
  """Routing by entropic optimal transport (arXiv:2202.01169; Megatron-LM's `sinkhorn` balancing).

  Args:
    k:               choices per token.
    capacity_factor: (train, eval) slots per token; None = nothing is dropped (Megatron-LM).
    min_capacity:    least slots of an expert.
    gates:           of a single choice: the 'sigmoid' of its logit, or its probability, 'softmax'. Those of
      several choices are their probabilities.
    tolerance:       the plan has converged when its column factors change less in the mean.
    iterations:      limit of the iterations.
    allow_causal:    accept that in training later tokens of a causal stack decide, through the plan.
  Losses: z.
  Differs: the plan is made in each routing group (Megatron-LM: of all tokens of a device). A single gate is
    Megatron-LM's sigmoid; the paper's is the probability (unverified).
  """

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k: ranges.Count = 1,
               capacity_factor: ranges.Factors = (None, None), min_capacity: ranges.Natural = 4,
               gates: ranges.Choice(*GATES) = 'sigmoid', tolerance: ranges.NonNegative = 1e-4,
               iterations: ranges.Count = 1000, allow_causal: ranges.Flag = False, rngs):
    choices.check_k('s_base', k, num_experts)
    self.w = gate.weights(d_model, num_experts, rngs=rngs)
    self.num_experts = num_experts
    self.k = k
    self.capacity_factor = tuple(capacity_factor)
    self.min_capacity = min_capacity
    self.gates = gates
    self.tolerance = tolerance
    self.iterations = iterations
    self.allow_causal = allow_causal

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]; raises UserError in the training of a causal stack."""
    if ctx.train and ctx.causal and not self.allow_causal:
      raise UserError('router s_base: in training its plan lets later tokens decide in a causal stack; '
                      'set allow_causal=True (evaluation is causal), or use router switch')
    logits = gate.logits(x, self.w[...])
    capacity = assignment.slots(ctx, self.num_experts, self.capacity_factor, self.min_capacity)
    a, aux = s_base(logits, ctx.mask, capacity, self.k, tokens=ctx.tokens, gates=self.gates,
                    balanced=ctx.train, tolerance=self.tolerance, iterations=self.iterations)
    return contract.Routed(a, aux, carry)
