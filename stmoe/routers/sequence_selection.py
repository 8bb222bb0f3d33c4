"""Expert selection of Union of Experts: a sequence chooses experts for all its tokens (arXiv:2503.02495)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate as gates
from stmoe.core.units import shards
from stmoe.errors import UserError
from stmoe.routers import union_of_experts

REASON = ("sequence_selection chooses by a whole sequence, later tokens too; nearest: router "
          "name='union_of_experts' with select='causal'")


class SequenceSelection(nnx.Module):
  """The k experts of largest softmax(W flatten(x) + b), W [S D,E], of a sequence x [S,D].

  Args:
    k:      experts of a sequence.
    length: S, the most tokens of a sequence; a shorter one is filled up with zeros.
    gate:   a key of `shards.GATES`: by 'multiply' outputs are weighed by their probabilities.
    allow_causal: accept a stack in which a token must not depend on later tokens.
  Losses: none.
  Differs: the released class cannot run, its equations are taken. There S is 60 always.
  """

  undecodable = REASON

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k: ranges.Count = 2,
               length: ranges.Count = 60, gate: ranges.Choice(*shards.GATES) = 'none',
               allow_causal: ranges.Flag = False, rngs):
    choices.check_k('sequence_selection', k, num_experts)
    self.w, self.b = shards.weights(d_model * length, num_experts, gate, rngs)
    self.num_experts, self.k, self.length, self.gate = num_experts, k, length, gate
    self.allow_causal = allow_causal
    self.gates_sum = k if gate == 'none' else None
    self.rows_per_sequence = 1                                       # that pass W

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,E], for all S tokens the same, for x [G,S,D]; raises UserError for too long ones."""
    groups, size, _ = x.shape
    if size > self.length:
      raise UserError(f'router sequence_selection: length={self.length}, but {size} tokens are routed '
                      f'together; nearest: length={size}')
    real = jnp.where(ctx.mask[..., None], x, 0)
    filled = jnp.pad(real, ((0, 0), (0, self.length - size), (0, 0)))
    flat = filled.reshape(groups, 1, -1)                             # [G, 1, S*D]
    logits = gates.logits(flat, self.w[...]) + self.b[...]
    return jnp.broadcast_to(logits, (groups, size, self.num_experts))

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; see `contract.OFFERS`. Raises UserError in a causal stack."""
    if ctx.causal and not self.allow_causal:
      raise UserError(f'in a causal stack router {REASON} (or allow_causal=True)')
    return contract.Routed(*union_of_experts.union_of_experts(
        logits, ctx.mask, self.k, None, over='none', gate=self.gate, tokens=ctx.tokens, choose=choose), carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
