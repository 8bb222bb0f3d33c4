"""The Switch baseline of SparseMixer's code: jitter on the logits, not on the router's input."""

from flax import nnx
import jax

from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import noise
from stmoe.routers import switch


class SwitchGate(nnx.Module):
  """Top-1 by softmax(s * U(1 - epsilon, 1 + epsilon)), the jitter in training only (arXiv:2310.00811).

  Args:
    epsilon:         of the jitter; SparseMixer's own window has the same number.
    capacity_factor: (train, eval) slots per token; None = nothing is dropped, as in the released example.
  Losses: balance, z.
  """

  k = 1                              # choices of a token

  def __init__(self, d_model: int, *, num_experts: ranges.Count, epsilon: ranges.Below1 = 0.1,
               capacity_factor: ranges.Factors = (None, None), rngs):
    self.w = gate.weights(d_model, num_experts, rngs=rngs)
    self.num_experts = num_experts
    self.epsilon = epsilon
    self.capacity_factor = tuple(capacity_factor)

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,E] for x [G,S,D]."""
    key = ctx.fold('jitter').key if ctx.train else None
    return noise.jitter(gate.logits(x, self.w[...]), self.epsilon, key)

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; see `contract.OFFERS`."""
    capacity = assignment.slots(ctx, self.num_experts, self.capacity_factor)
    a, aux = switch.switch(logits, ctx.mask, capacity, ctx.tokens, choose=choose)
    return contract.Routed(a, aux, carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
