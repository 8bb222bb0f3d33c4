"""Switch routing whose experts keep the largest gates instead of the first tokens (Mesh-TensorFlow)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import losses
from stmoe.core import metrics
from stmoe.core import noise
from stmoe.errors import UserError


def switch_max(logits: jax.Array, mask: jax.Array, capacity: int,
               tokens: jax.Array | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): as Switch, but an expert keeps its C tokens of largest gate.

  `_switch_max_gating` of Mesh-TensorFlow. Whether a token keeps its expert depends on
  later tokens of the group, so this is not causal.

  Args:
    logits: f32[G,S,E]; mask: bool[G,S]; capacity: C; tokens: see `losses.token_mean`.
  """
  probs = jax.nn.softmax(logits, axis=-1)                            # [G, S, E]
  choice = choices.choose(probs, 1)                                  # [G, S, 1]
  gate = choices.values(probs, choice)
  edges = assignment.from_choices(choice, gate, probs.shape[-1])
  edges = assignment.kill_padding(edges, mask)
  a = assignment.cap(edges, capacity, priority=jax.lax.stop_gradient(gate[..., 0]))
  return a, contract.Aux(
      losses=dict(balance=losses.balance(probs, choice, mask, tokens), z=losses.z(logits, mask, tokens)),
      load=metrics.load(edges),
      metrics=metrics.routing(logits, probs, edges, a, mask, tokens))


class SwitchMax(nnx.Module):
  """Top-1 routing that drops the smallest gates (Mesh-TensorFlow, after arXiv:2101.03961).

  Args:
    capacity_factor: (train, eval) slots per token; None = nothing is dropped.
    min_capacity:    least slots of an expert.
    jitter:          in training the router sees x * U(1 - jitter, 1 + jitter).
    allow_causal:    accept a stack in which a token must not depend on later tokens.
  Losses: balance, z.
  """

  def __init__(self, d_model: int, *, num_experts: ranges.Count,
               capacity_factor: ranges.Factors = (1.25, 2.0), min_capacity: ranges.Natural = 4,
               jitter: ranges.Below1 = 1e-2, allow_causal: ranges.Flag = False, rngs):
    self.w = gate.weights(d_model, num_experts, rngs=rngs)
    self.num_experts = num_experts
    self.capacity_factor = tuple(capacity_factor)
    self.min_capacity = min_capacity
    self.jitter = jitter
    self.allow_causal = allow_causal

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]; raises UserError in a causal stack."""
    if ctx.causal and not self.allow_causal:
      raise UserError('router switch_max lets later tokens decide in a causal stack; nearest: router '
                      "name='switch' (or allow_causal=True)")
    x = noise.jitter(x.astype(jnp.float32), self.jitter, ctx.fold('jitter').key if ctx.train else None)
    logits = gate.logits(x, self.w[...])        # [G, S, E]
    capacity = assignment.slots(ctx, self.num_experts, self.capacity_factor, self.min_capacity)
    return contract.Routed(*switch_max(logits, ctx.mask, capacity, ctx.tokens), carry)
